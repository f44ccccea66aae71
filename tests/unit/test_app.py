"""The application: routes, statuses, errors in OpenAI's shape, streams and vanished clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pd_eagle.errors import (
    DeadlineExceeded,
    EngineError,
    InvalidRequest,
    ModelNotFound,
    NotFound,
    NotServing,
    Overloaded,
    PdEagleError,
    TooManyRequests,
    TransferFailed,
    WorkerDied,
)
from pd_eagle.http.api_keys import carries_one
from pd_eagle.http.app import make_app
from pd_eagle.http.request_body import MAX_BODY_BYTES
from pd_eagle.plan.placement import Plan
from pd_eagle.requests.health import Health
from tests.asgi import Exchange, call

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from starlette.applications import Starlette

    from pd_eagle.http.app import OpenAI
    from pd_eagle.requests.fleet import Status

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
JSON = {"prompt": "x"}
STREAM = {"prompt": "x", "stream": True}


@dataclass
class Wanted:
    """A parsed request."""

    endpoint: str
    stream: bool


class ScriptedLayer:
    """An OpenAI layer that does what `steps` say: give an event, raise, or wait for ever."""

    model = "letters"
    root, created = "/models/letters", 1_700_000_000
    context_length = 1024
    tool_call_parser = None

    def __init__(self) -> None:
        self.steps: list[str | Exception | None] = ["one", "two"]
        self.parsed: list[tuple[str, Any]] = []
        self.aborted: list[str | None] = []
        self.refuses: Exception | None = None
        self.running = 0
        self.waiting = asyncio.Event()
        self.deaf = False
        self.background: asyncio.Task[None] | None = None

    def abort(self, rid: str | None) -> None:
        self.aborted.append(rid)

    def model_info(self) -> dict[str, Any]:
        return {"model_path": "letters"}

    def schemas(self) -> dict[str, Any]:
        return {"chat": {"type": "object"}}

    def detokenize(self, ids: list[int]) -> str:
        raise AssertionError("nothing is resumed here")

    async def parse(self, endpoint: str, body: bytes, http: Any) -> Wanted:
        if self.refuses:
            raise self.refuses
        fields = json.loads(body)
        http.state.ignored = [name for name in fields if name == "nonsense"]
        self.parsed.append((endpoint, fields))
        return Wanted(endpoint, fields.get("stream", False))

    async def stream(self, endpoint: str, request: Any, http: object) -> AsyncGenerator[str, None]:
        return self._events()

    async def _events(self) -> AsyncGenerator[str, None]:
        self.running += 1
        try:
            for step in self.steps:
                await asyncio.sleep(0)
                if isinstance(step, Exception):
                    raise step
                if step is None:
                    self.waiting.set()
                    await asyncio.Event().wait()
                yield f"data: {step}\n\n"
        finally:
            self.running -= 1

    async def answer(self, endpoint: str, request: Any, http: Any) -> bytes:
        events = [event async for event in self._events()]
        http.state.background = self.background
        return json.dumps({"text": "".join(events)}).encode()

    async def stored(self, response_id: str, *, cancel: bool) -> bytes:
        if response_id != "resp_1":
            raise NotFound(f"no response {response_id!r}")
        return json.dumps({"id": response_id, "cancelled": cancel}).encode()


class ScriptedFront:
    """A front that is in the given state."""

    def __init__(self) -> None:
        self.layer = ScriptedLayer()
        self.api: OpenAI | None = self.layer
        self.api_key: str | None = None
        self.admin_api_key: str | None = None
        self.operations: Any = None
        self.status: Status = "ready"
        self.full: PdEagleError | None = None
        self.failing = False
        self.keep_alive_s = 0.0
        self.max_body_memory_bytes = 2**30
        self.inside: list[str] = []

    def health(self) -> Health:
        plan = Plan("unified", "a test", "cpu", ())
        return Health(
            status=self.status,
            model="letters",
            model_note=None,
            draft_model=None,
            transfer_backend=None,
            transfer_reason=None,
            region=None,
            version="1",
            plan=plan,
            workers=[],
            inflight=0,
            queued=0,
        )

    @contextlib.contextmanager
    def admit(self, client: str) -> Iterator[None]:
        if self.full:
            raise self.full
        self.inside.append(client)
        try:
            yield
        finally:
            self.inside.remove(client)

    def metrics(self, accept: str) -> tuple[bytes, str]:
        return b"series 1.0\n", accept or "text/plain"


@pytest.fixture
def front() -> ScriptedFront:
    return ScriptedFront()


@pytest.fixture
def app(front: ScriptedFront) -> Starlette:
    return make_app(front)


def error_of(body: Any) -> tuple[str, str]:
    """Return type and code, after a look at the shape."""
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]["type"], body["error"]["code"]


# --- health


@pytest.mark.parametrize(
    ("status", "code"),
    [("ready", 200), ("degraded", 200), ("starting", 503), ("draining", 503), ("failed", 503)],
)
async def test_health_follows_the_service(
    app: Starlette, front: ScriptedFront, status: Status, code: int
) -> None:
    front.status = status
    health, ready = await call(app, "GET", "/health"), await call(app, "GET", "/health/ready")
    assert (health.status, health.json()["status"]) == (code, status)
    assert (ready.status, ready.json()) == (code, {"status": status})
    assert (await call(app, "GET", "/health/live")).status == 200


# --- models


async def test_the_model_is_listed(app: Starlette) -> None:
    listed = (await call(app, "GET", "/v1/models")).json()
    card = (await call(app, "GET", "/v1/models/letters")).json()
    assert listed == {"object": "list", "data": [card]}
    assert (card["id"], card["object"], card["max_model_len"]) == ("letters", "model", 1024)
    assert (card["root"], card["created"]) == ("/models/letters", 1_700_000_000)
    assert (await call(app, "GET", "/v1/models/default")).json() == card


async def test_a_models_name_may_have_slashes(app: Starlette, front: ScriptedFront) -> None:
    front.layer.model = "Qwen/Qwen2.5-7B-Instruct"
    answer = await call(app, "GET", "/v1/models/Qwen/Qwen2.5-7B-Instruct")
    assert answer.json()["id"] == "Qwen/Qwen2.5-7B-Instruct"


async def test_another_model_is_not_here(app: Starlette) -> None:
    answer = await call(app, "GET", "/v1/models/others")
    assert answer.status == 404
    assert error_of(answer.json()) == ("invalid_request_error", "model_not_found")


# --- answers


@pytest.mark.parametrize(("path", "endpoint"), [(CHAT, "chat"), (COMPLETION, "completion")])
async def test_a_whole_answer(
    app: Starlette, front: ScriptedFront, path: str, endpoint: str
) -> None:
    answer = await call(app, "POST", path, json_body=JSON)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == {"text": "data: one\n\ndata: two\n\n"}
    assert front.layer.parsed == [(endpoint, JSON)]


@pytest.mark.parametrize("path", [CHAT, COMPLETION])
async def test_a_stream(app: Starlette, path: str) -> None:
    answer = await call(app, "POST", path, json_body=STREAM)
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.chunks == [b"data: one\n\n", b"data: two\n\n"]


async def test_events_leave_as_they_come(app: Starlette, front: ScriptedFront) -> None:
    front.layer.steps = ["one", None]
    async with Exchange(app, "POST", CHAT, body=json.dumps(STREAM).encode()) as exchange:
        assert (await exchange.next_message())["status"] == 200
        assert (await exchange.next_message())["body"] == b"data: one\n\n"
        await front.layer.waiting.wait()


async def test_a_body_may_come_in_pieces(app: Starlette, front: ScriptedFront) -> None:
    pieces = [bytes([byte]) for byte in json.dumps(JSON).encode()]
    answer = await call(app, "POST", CHAT, body=pieces)
    assert answer.status == 200
    assert front.layer.parsed == [("chat", JSON)]


# --- refusals


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "unknown_url"),
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("HEAD", CHAT, 405, "method_not_allowed"),
        ("DELETE", COMPLETION, 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("PUT", "/v1/models", 405, "method_not_allowed"),
    ],
)
async def test_wrong_paths_and_methods(
    app: Starlette, method: str, path: str, status: int, code: str
) -> None:
    answer = await call(app, method, path)
    assert answer.status == status
    assert error_of(answer.json()) == ("invalid_request_error", code)
    assert answer.json()["error"]["message"].startswith(f"{method} {path}: ")
    assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/v1/models"])
async def test_head_is_get_without_a_body(app: Starlette, path: str) -> None:
    assert (await call(app, "HEAD", path)).status == (await call(app, "GET", path)).status == 200


@pytest.mark.parametrize(
    ("path", "allow"), [("/health", "GET, HEAD, OPTIONS"), (CHAT, "OPTIONS, POST")]
)
async def test_options_say_what_is_allowed(app: Starlette, path: str, allow: str) -> None:
    answer = await call(app, "OPTIONS", path)
    assert (answer.status, answer.headers["allow"], answer.body) == (204, allow, b"")


async def test_an_empty_body_is_told(app: Starlette) -> None:
    answer = await call(app, "POST", CHAT)
    assert answer.status == 400
    assert error_of(answer.json()) == ("invalid_request_error", "invalid_request_error")


@pytest.mark.parametrize("declared", [False, True])
async def test_a_body_that_is_too_large_is_refused(app: Starlette, declared: bool) -> None:
    piece = b"x" * 2**20
    headers = {"content-length": str(20 * 2**20)} if declared else {}
    answer = await call(app, "POST", CHAT, body=[piece] * 20, headers=headers)
    assert answer.status == 413
    assert error_of(answer.json()) == ("invalid_request_error", "body_too_large")
    assert str(MAX_BODY_BYTES) in answer.json()["error"]["message"]


async def test_a_body_without_end_is_not_read_for_ever(app: Starlette) -> None:
    piece = b"x" * 2**20
    exchange = Exchange(app, "POST", CHAT, body=[piece] * 100)
    async with exchange:
        assert (await exchange.answer()).status == 413
        assert exchange.unread > 20


REFUSALS = [
    (InvalidRequest("no"), 400, "invalid_request_error", False),
    (ModelNotFound("no"), 404, "model_not_found", False),
    (EngineError("no"), 500, "engine_error", False),
    (WorkerDied("no"), 503, "worker_died", True),
    (TransferFailed("no"), 503, "transfer_failed", True),
    (Overloaded("no"), 503, "overloaded", True),
    (NotServing("no"), 503, "not_serving", True),
    (DeadlineExceeded("no"), 504, "deadline_exceeded", False),
]


@pytest.mark.parametrize(("error", "status", "code", "retry"), REFUSALS)
@pytest.mark.parametrize("body", [JSON, STREAM])
@pytest.mark.parametrize("where", ["parsing", "running"])
async def test_an_error_before_the_answer_has_its_status(
    app: Starlette,
    front: ScriptedFront,
    error: PdEagleError,
    status: int,
    code: str,
    retry: bool,
    body: dict[str, Any],
    where: str,
) -> None:
    if where == "parsing":
        front.layer.refuses = error
    else:
        front.layer.steps = [error]
    answer = await call(app, "POST", CHAT, json_body=body)
    assert answer.status == status
    assert error_of(answer.json())[1] == code
    assert answer.headers.get("retry-after") == ("1" if retry else None)
    assert answer.headers["content-type"] == "application/json"
    assert front.layer.running == 0


async def test_a_full_service_is_told_before_the_body_is_read(
    app: Starlette, front: ScriptedFront
) -> None:
    front.full = Overloaded("3 requests wait")
    exchange = Exchange(app, "POST", CHAT, body=[b"{", b"}"])
    async with exchange:
        answer = await exchange.answer()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert exchange.unread == 2
    assert front.layer.parsed == []


async def test_a_service_that_is_not_ready_says_so(app: Starlette, front: ScriptedFront) -> None:
    front.api, front.status = None, "starting"
    for method, path in (("POST", CHAT), ("GET", "/v1/models")):
        answer = await call(app, method, path)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["error"]["message"] == "the service is starting"
        assert answer.headers["connection"] == "close"


# --- the key


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (None, 401),
        ("Bearer wrong", 401),
        ("Bearer secre", 401),
        ("Bearer ", 401),
        ("Bearer geheim\u00fc", 401),
        ("Bearer secret", 200),
    ],
)
@pytest.mark.parametrize(("method", "path"), [("POST", CHAT), ("GET", "/v1/models")])
async def test_the_key_must_be_right(
    app: Starlette, front: ScriptedFront, given: str | None, status: int, method: str, path: str
) -> None:
    front.api_key = "secret"
    headers = {} if given is None else {"authorization": given}
    answer = await call(app, method, path, json_body=JSON, headers=headers)
    assert answer.status == status
    if status == 401:
        assert error_of(answer.json()) == ("authentication_error", "invalid_api_key")
        assert "secret" not in answer.body.decode()


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (b"Bearer one", 200),
        (b"bearer one", 200),
        (b"BEARER  one ", 200),
        ("Bearer zwei-\u00fc".encode(), 200),
        ("Bearer zwei-\u00fc".encode("latin-1"), 401),
        (b"Bearer one,zwei", 401),
        (b"Bearer three", 401),
        (b"Basic one", 401),
        (b"one", 401),
        (b"Bearer", 401),
        (b"", 401),
        (b"\xff\xfe one", 401),
    ],
)
def test_several_keys_in_any_alphabet(given: bytes, status: int) -> None:
    assert carries_one("one,zwei-\u00fc", given) is (status == 200)


async def test_health_needs_no_key(app: Starlette, front: ScriptedFront) -> None:
    front.api_key = "secret"
    for path in ("/health", "/health/live", "/health/ready"):
        assert (await call(app, "GET", path)).status == 200


async def test_without_a_key_the_body_is_not_read(app: Starlette, front: ScriptedFront) -> None:
    front.api_key = "secret"
    async with Exchange(app, "POST", CHAT, body=[b"{", b"}"]) as exchange:
        assert (await exchange.answer()).status == 401
        assert exchange.unread == 2


# --- errors in mid-stream


async def test_an_error_after_the_first_event_is_one_event(
    app: Starlette, front: ScriptedFront
) -> None:
    front.layer.steps = ["one", WorkerDied("decode-0: its process ended"), "never"]
    answer = await call(app, "POST", CHAT, json_body=STREAM)
    assert answer.status == 200
    first, last = answer.chunks
    assert first == b"data: one\n\n"
    error, done, end = last.decode().split("\n\n")
    body = json.loads(error.removeprefix("data: "))
    assert error_of(body) == ("server_error", "worker_died")
    assert (done, end) == ("data: [DONE]", "")
    assert answer.complete
    assert front.layer.running == 0


async def test_a_crash_after_the_first_event_is_an_event_too(
    app: Starlette, front: ScriptedFront, caplog: pytest.LogCaptureFixture
) -> None:
    front.layer.steps = ["one", ZeroDivisionError("secret detail")]
    answer = await call(app, "POST", CHAT, json_body=STREAM)
    assert b"internal_error" in answer.chunks[1]
    assert b"secret detail" not in answer.body
    assert answer.chunks[1].endswith(b"data: [DONE]\n\n")
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert record.exc_info is not None


@pytest.mark.parametrize("body", [JSON, STREAM])
async def test_a_crash_before_the_answer_is_a_500_and_is_raised(
    app: Starlette, front: ScriptedFront, body: dict[str, Any]
) -> None:
    front.layer.steps = [ZeroDivisionError("secret detail")]
    exchange = Exchange(app, "POST", CHAT, body=json.dumps(body).encode())
    await exchange.begin()
    answer = await exchange.answer()
    assert answer.status == 500
    assert error_of(answer.json()) == ("server_error", "internal_error")
    assert b"secret detail" not in answer.body
    with pytest.raises(ZeroDivisionError):  # for the server's log
        await exchange.end()
    assert front.layer.running == 0


# --- pauses in mid-stream


async def test_a_pause_is_filled_with_comments(app: Starlette, front: ScriptedFront) -> None:
    front.layer.steps = ["one", None]
    front.keep_alive_s = 0.02
    async with Exchange(app, "POST", CHAT, body=json.dumps(STREAM).encode()) as exchange:
        messages = [await exchange.next_message() for _ in range(4)]
        bodies = [message.get("body") for message in messages]
        assert bodies == [None, b"data: one\n\n", b": keep-alive\n\n", b": keep-alive\n\n"]
        await exchange.end()
        assert front.layer.running == 0


async def test_nothing_is_said_before_the_first_event(app: Starlette, front: ScriptedFront) -> None:
    """Until then an error may yet be an ordinary error response."""
    front.layer.steps = [None]
    front.keep_alive_s = 0.01
    async with Exchange(app, "POST", CHAT, body=json.dumps(STREAM).encode()) as exchange:
        await front.layer.waiting.wait()
        await asyncio.sleep(0.05)
        assert exchange.sent == 0
        await exchange.end()


# --- clients that go away


async def test_a_client_that_goes_while_the_stream_waits_closes_it(
    app: Starlette, front: ScriptedFront
) -> None:
    front.layer.steps = ["one", None]
    async with Exchange(app, "POST", CHAT, body=json.dumps(STREAM).encode()) as exchange:
        await front.layer.waiting.wait()
        await exchange.end()
        assert front.layer.running == 0


async def test_a_client_that_goes_before_the_first_event_closes_the_stream(
    app: Starlette, front: ScriptedFront
) -> None:
    front.layer.steps = [None]
    async with Exchange(app, "POST", CHAT, body=json.dumps(STREAM).encode()) as exchange:
        await front.layer.waiting.wait()
        await exchange.end()
        assert front.layer.running == 0
        assert exchange.sent == 0


async def test_a_client_that_goes_while_send_is_blocked_closes_the_stream(
    app: Starlette, front: ScriptedFront
) -> None:
    front.layer.steps = ["event"] * 1000
    async with Exchange(app, "POST", CHAT, body=json.dumps(STREAM).encode()) as exchange:
        await exchange.next_message()
        exchange.stop_reading()
        await exchange.blocked.wait()
        assert front.layer.running == 1
        await exchange.end()
        assert front.layer.running == 0


@pytest.mark.parametrize("path", [CHAT, COMPLETION])
async def test_a_client_that_goes_cancels_a_whole_answer(
    app: Starlette, front: ScriptedFront, path: str
) -> None:
    front.layer.steps = [None]
    async with Exchange(app, "POST", path, body=json.dumps(JSON).encode()) as exchange:
        await front.layer.waiting.wait()
        assert front.layer.running == 1
        await exchange.end()
        assert front.layer.running == 0


async def test_a_client_that_goes_while_it_sends_is_no_crash(
    app: Starlette, front: ScriptedFront
) -> None:
    async with Exchange(app, "POST", CHAT, body=b'{"prompt":', more=True) as exchange:
        await exchange.end()
    assert front.layer.parsed == []


async def test_no_task_is_left(app: Starlette, front: ScriptedFront) -> None:
    endings: list[list[str | Exception | None]]
    endings = [["one"], [WorkerDied("no")], [ZeroDivisionError()], ["one", WorkerDied("no")]]
    for steps in endings:
        for body in (JSON, STREAM):
            front.layer.steps = steps
            exchange = Exchange(app, "POST", CHAT, body=json.dumps(body).encode())
            await exchange.begin()
            await exchange.answer()
            await asyncio.gather(exchange.end(), return_exceptions=True)
            assert asyncio.all_tasks() == {asyncio.current_task()}


# --- the door


async def test_a_client_is_let_go_however_its_request_ends(
    app: Starlette, front: ScriptedFront
) -> None:
    for body in (JSON, STREAM):
        assert (await call(app, "POST", COMPLETION, json_body=body)).status == 200
        assert front.inside == []
    front.layer.refuses = InvalidRequest("no")
    assert (await call(app, "POST", COMPLETION, json_body=JSON)).status == 400
    front.layer.refuses, front.layer.steps = None, ["one", None]
    async with Exchange(app, "POST", COMPLETION, body=json.dumps(STREAM).encode()) as exchange:
        await front.layer.waiting.wait()
        assert front.inside == ["127.0.0.1"]
        exchange.hang_up()
    assert front.inside == []


async def test_too_many_requests_of_a_client(app: Starlette, front: ScriptedFront) -> None:
    front.full = TooManyRequests("127.0.0.1 has 2 requests open")
    answer = await call(app, "POST", COMPLETION, json_body=JSON)
    assert (answer.status, answer.headers["retry-after"]) == (429, "1")
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"


async def test_metrics_have_the_type_that_was_asked_for(app: Starlette) -> None:
    answer = await call(app, "GET", "/metrics", headers={"accept": "text/x"})
    assert (answer.status, answer.body) == (200, b"series 1.0\n")
    assert answer.headers["content-type"] == "text/x"
