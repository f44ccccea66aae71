"""Routes of other APIs than OpenAI's older two: their errors, ids, origins and places."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

from pd_eagle.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    NotServing,
    PdEagleError,
)
from pd_eagle.http.app import make_app
from pd_eagle.http.request_ids import mark
from tests.asgi import Exchange, call
from tests.unit.test_app import CHAT, JSON, STREAM, ScriptedFront

if TYPE_CHECKING:
    from starlette.applications import Starlette

MESSAGES, COUNT, RESPONSES = "/v1/messages", "/v1/messages/count_tokens", "/v1/responses"


@pytest.fixture
def front() -> ScriptedFront:
    return ScriptedFront()


@pytest.fixture
def app(front: ScriptedFront) -> Starlette:
    return make_app(front)


def event(chunk: bytes) -> tuple[str, Any]:
    name, data = chunk.decode().removesuffix("\n\n").split("\ndata: ")
    return name.removeprefix("event: "), json.loads(data)


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [(MESSAGES, "messages"), (COUNT, "count_tokens"), (RESPONSES, "responses")],
)
async def test_each_route_has_its_endpoint(
    app: Starlette, front: ScriptedFront, path: str, endpoint: str
) -> None:
    assert (await call(app, "POST", path, json_body=JSON)).status == 200
    assert front.layer.parsed == [(endpoint, JSON)]
    front.full = NotServing("full")
    assert (await call(app, "POST", path, json_body=JSON)).status == 503


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequest("wrong"), 400, "invalid_request_error"),
        (ModelNotFound("wrong"), 404, "not_found_error"),
        (NotServing("wrong"), 503, "overloaded_error"),
        (DeadlineExceeded("wrong"), 504, "timeout_error"),
        (RuntimeError("secret"), 500, "api_error"),
    ],
)
async def test_anthropics_errors(
    app: Starlette, front: ScriptedFront, error: Exception, status: int, kind: str
) -> None:
    front.layer.refuses = error
    async with Exchange(app, "POST", MESSAGES, body=b"{}") as exchange:
        answer = await exchange.answer()
        if isinstance(error, RuntimeError):
            with pytest.raises(RuntimeError):
                await exchange.end()
            exchange._task = asyncio.ensure_future(asyncio.sleep(0))
    assert answer.status == status
    message = "internal error: RuntimeError" if status == 500 else "wrong"
    assert answer.json() == {"type": "error", "error": {"type": kind, "message": message}}


async def test_a_wrong_key_is_refused_in_the_apis_own_shape(
    app: Starlette, front: ScriptedFront
) -> None:
    front.api_key = "one,two"
    answer = await call(app, "POST", MESSAGES, json_body=JSON)
    assert (answer.status, answer.json()["error"]["type"]) == (401, "authentication_error")
    for name, value, status in (
        ("x-api-key", "two", 200),
        ("x-api-key", "three", 401),
        ("authorization", "Bearer one", 200),
        ("authorization", "one", 401),
    ):
        headers = {name: value}
        answer = await call(app, "POST", MESSAGES, json_body=JSON, headers=headers)
        assert answer.status == status, headers


@pytest.mark.parametrize(
    ("path", "name", "told"),
    [
        (MESSAGES, "error", {"type": "error", "error": {"type": "api_error", "message": "gone"}}),
        (
            RESPONSES,
            "error",
            {
                "type": "error",
                "sequence_number": 0,
                "message": "gone",
                "code": "internal_error",
                "param": None,
            },
        ),
    ],
)
async def test_a_stream_ends_with_an_error_event_of_its_api(
    app: Starlette, front: ScriptedFront, path: str, name: str, told: Any
) -> None:
    front.layer.steps = ["one", PdEagleError("gone")]
    answer = await call(app, "POST", path, json_body=STREAM)
    assert answer.status == 200
    kind, data = event(answer.chunks[-1])
    assert kind == name
    assert data | told == data


async def test_stored_responses(app: Starlette) -> None:
    found = await call(app, "GET", f"{RESPONSES}/resp_1")
    assert found.json() == {"id": "resp_1", "cancelled": False}
    ended = await call(app, "POST", f"{RESPONSES}/resp_1/cancel")
    assert ended.json()["cancelled"] is True
    missing = await call(app, "GET", f"{RESPONSES}/resp_2")
    assert (missing.status, missing.json()["error"]["code"]) == (404, "not_found")


async def test_one_in_the_background_keeps_its_place(app: Starlette, front: ScriptedFront) -> None:
    front.layer.background = asyncio.ensure_future(asyncio.sleep(3600))
    assert (await call(app, "POST", RESPONSES, json_body=JSON)).status == 200
    assert front.inside == ["127.0.0.1"]
    front.layer.background.cancel()
    await asyncio.wait({front.layer.background})
    await asyncio.sleep(0)
    assert front.inside == []


async def test_ignored_fields_are_named(app: Starlette) -> None:
    for body in (JSON, STREAM):
        answer = await call(app, "POST", CHAT, json_body=body | {"nonsense": 1})
        assert answer.headers["x-ignored-fields"] == "nonsense"
        answer = await call(app, "POST", CHAT, json_body=body)
        assert "x-ignored-fields" not in answer.headers


@pytest.mark.parametrize("path", ["/health/live", CHAT, "/nowhere"])
async def test_a_request_has_an_id(app: Starlette, path: str) -> None:
    method = "POST" if path == CHAT else "GET"
    given = await call(app, method, path, json_body=JSON, headers={"X-Request-ID": "mine-1"})
    assert (given.headers["x-request-id"], given.headers["request-id"]) == ("mine-1", "mine-1")
    ids = set()
    for bad in (None, "", "a b", "x" * 129):
        headers = {} if bad is None else {"x-request-id": bad}
        made = await call(app, method, path, json_body=JSON, headers=headers)
        ids.add(made.headers["x-request-id"])
    assert len(ids) == 4
    assert all(len(one) == 32 for one in ids)


async def test_the_id_is_in_log_lines(app: Starlette, front: ScriptedFront) -> None:
    lines = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler = Lines()
    handler.setFormatter(logging.Formatter("%(request_id)s%(message).15s"))
    handler.addFilter(mark)
    logger = logging.getLogger("pd_eagle.http.event_stream")
    logger.addHandler(handler)
    try:
        front.layer.steps = ["one", RuntimeError("unexpected")]
        headers = {"x-request-id": "mine-2"}
        await call(app, "POST", CHAT, json_body=STREAM, headers=headers)
        logger.error("of nobody")
    finally:
        logger.removeHandler(handler)
    assert [line.splitlines()[0] for line in lines] == ["[mine-2] a stream failed", "of nobody"]


async def test_pages_from_elsewhere_need_a_setting(app: Starlette, front: ScriptedFront) -> None:
    origin = {"origin": "https://a.example"}
    closed = await call(app, "POST", CHAT, json_body=JSON, headers=origin)
    assert "access-control-allow-origin" not in closed.headers
    opened = make_app(front, "https://a.example,https://b.example")
    asked = origin | {"access-control-request-method": "POST"}
    asked |= {"access-control-request-headers": "authorization, x-stainless-os"}
    preflight = await call(opened, "OPTIONS", CHAT, headers=asked)
    assert preflight.status == 200
    assert preflight.headers["access-control-allow-origin"] == "https://a.example"
    assert "x-stainless-os" in preflight.headers["access-control-allow-headers"]
    for body in (JSON, STREAM):
        answer = await call(opened, "POST", CHAT, json_body=body, headers=origin)
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
    other = await call(
        opened, "POST", CHAT, json_body=JSON, headers={"origin": "https://c.example"}
    )
    assert "access-control-allow-origin" not in other.headers
