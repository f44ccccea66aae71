"""SGLang's own routes: who may use them, what is refused and why, what operations answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from pd_eagle.errors import DeadlineExceeded, PdEagleError
from pd_eagle.http.access import authorize_admin
from pd_eagle.http.app import make_app
from pd_eagle.http.unserved import UNSERVED
from tests.asgi import Answer, call
from tests.unit.test_app import ScriptedFront

if TYPE_CHECKING:
    from starlette.applications import Starlette

ADMIN = [
    ("GET", "/server_info"),
    ("GET", "/get_server_info"),
    ("GET", "/flush_cache"),
    ("POST", "/flush_cache"),
    ("POST", "/start_profile"),
    ("POST", "/stop_profile"),
]
FOREIGN = {"x-forwarded-for": "192.0.2.1"}


@dataclass
class ScriptedOperations:
    """Operations that note what they were asked for."""

    asked: list[Any] = field(default_factory=list)
    failure: PdEagleError | None = None
    not_flushed: str | None = None

    async def generate_token(self) -> None:
        if self.failure:
            raise self.failure

    async def control(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        self.asked.append((name, arguments))
        return {}

    async def flush_cache(self, wait_s: float) -> str | None:
        self.asked.append(("flush_cache", wait_s))
        return self.not_flushed

    async def server_info(self) -> dict[str, Any]:
        self.asked.append("server_info")
        return {"version": "1"}

    def loads(self) -> dict[str, Any]:
        return {"loads": []}

    def loads_exposition(self) -> str:
        return "# TYPE sglang_num_running_reqs gauge\n"


@pytest.fixture
def operations() -> ScriptedOperations:
    return ScriptedOperations()


@pytest.fixture
def front(operations: ScriptedOperations) -> ScriptedFront:
    front = ScriptedFront()
    front.operations = operations
    return front


@pytest.fixture
def app(front: ScriptedFront) -> Starlette:
    return make_app(front)


# --- who may


@pytest.mark.parametrize(("method", "path"), ADMIN)
async def test_without_an_admin_key_only_this_host_administers(
    app: Starlette, operations: ScriptedOperations, method: str, path: str
) -> None:
    foreign = await call(app, method, path, headers=FOREIGN)
    assert (foreign.status, operations.asked) == (403, [])
    assert "ADMIN_API_KEY" in foreign.json()["error"]["message"]
    assert (await call(app, method, path)).status == 200
    assert operations.asked


@pytest.mark.parametrize(("method", "path"), ADMIN)
async def test_an_admin_key_is_wanted_where_one_is_set(
    app: Starlette, front: ScriptedFront, method: str, path: str
) -> None:
    front.api_key, front.admin_api_key = "user", "admin"

    async def status(key: str | None) -> int:
        headers = FOREIGN | ({} if key is None else {"authorization": f"Bearer {key}"})
        return (await call(app, method, path, headers=headers)).status

    assert [await status(key) for key in (None, "user", "admin")] == [401, 401, 200]


async def test_the_usual_key_is_wanted_on_this_host_too(
    app: Starlette, front: ScriptedFront
) -> None:
    front.api_key = "user"
    assert (await call(app, "GET", "/server_info")).status == 401
    headers = {"authorization": "Bearer user"}
    assert (await call(app, "GET", "/server_info", headers=headers)).status == 200


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("testclient", False),
        (None, False),
    ],
)
def test_which_clients_are_on_this_host(host: str | None, local: bool) -> None:
    client = None if host is None else (host, 1)
    request = Request({"type": "http", "headers": [], "client": client})
    if local:
        authorize_admin(request, ScriptedFront())
        return
    with pytest.raises(HTTPException) as refused:
        authorize_admin(request, ScriptedFront())
    assert refused.value.status_code == 403


async def test_other_routes_want_the_usual_key(app: Starlette, front: ScriptedFront) -> None:
    front.api_key = "user"
    asked = [("POST", "/generate"), ("POST", "/v1/score"), ("GET", "/v1/loads")]
    for method, path in [*asked, ("POST", "/open_session"), ("GET", "/model_info")]:
        assert (await call(app, method, path, json_body={})).status == 401, path
    for path in ("/ping", "/ready", "/version", "/health_generate", "/"):
        assert (await call(app, "GET", path)).status == 200, path


# --- what they say


@pytest.mark.parametrize("path", UNSERVED)
async def test_a_refusal_says_why(app: Starlette, path: str) -> None:
    refusal = UNSERVED[path]
    for method in refusal.methods:
        answer = await call(app, method, path)
        assert answer.status == refusal.status
        assert answer.json()["error"]["message"] == refusal.reason


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        ("/generate", "generate"),
        ("/vertex_generate", "vertex"),
        ("/invocations", "chat"),
        ("/tokenize", "tokenize"),
        ("/v1/tokenize", "tokenize"),
        ("/detokenize", "detokenize"),
        ("/v1/detokenize", "detokenize"),
        ("/v1/score", "score"),
    ],
)
async def test_requests_go_the_way_of_all_requests(
    app: Starlette, front: ScriptedFront, path: str, endpoint: str
) -> None:
    assert (await call(app, "POST", path, json_body={"text": "x"})).status == 200
    assert front.layer.parsed == [(endpoint, {"text": "x"})]
    front.full = DeadlineExceeded("no more")
    assert (await call(app, "POST", path, json_body={})).status == 504


async def test_a_token_shows_health(app: Starlette, operations: ScriptedOperations) -> None:
    assert (await call(app, "GET", "/health_generate")).status == 200
    operations.failure = DeadlineExceeded("none came")
    answer = await call(app, "GET", "/health_generate")
    assert (answer.status, answer.json()["reason"]) == (503, "none came")


async def test_flags_follow_health(app: Starlette, front: ScriptedFront) -> None:
    front.status = "draining"
    assert [(await call(app, "GET", path)).status for path in ("/ping", "/ready")] == [503, 503]


async def flushed(app: Starlette, query: bytes) -> Answer:
    async def with_query(scope: Any, receive: Any, send: Any) -> None:
        await app(scope | {"query_string": query}, receive, send)

    return await call(with_query, "POST", "/flush_cache")


async def test_flushing(app: Starlette, operations: ScriptedOperations) -> None:
    assert (await flushed(app, b"timeout=2.5")).body == b"Cache flushed.\n"
    operations.not_flushed = "decode-0: it is busy"
    assert (await flushed(app, b"")).status == 400
    assert operations.asked == [("flush_cache", 2.5), ("flush_cache", 2.0)]


@pytest.mark.parametrize("query", [b"timeout=-1", b"timeout=soon", b"timeout=nan", b"timeout=9e9"])
async def test_a_wrong_timeout_is_told(app: Starlette, query: bytes) -> None:
    answer = await flushed(app, query)
    assert answer.status == 400
    assert "timeout=" in answer.json()["error"]["message"]


async def test_a_profile_takes_what_sglang_takes(
    app: Starlette, operations: ScriptedOperations
) -> None:
    taken = await call(app, "POST", "/start_profile", json_body={"num_steps": 3})
    assert (taken.status, operations.asked) == (200, [("start_profile", {"num_steps": 3})])
    assert (await call(app, "POST", "/start_profile", json_body={"x": 3})).status == 400
    assert (await call(app, "POST", "/start_profile", body=b"{")).status == 400
    assert (await call(app, "POST", "/start_profile", body=b"[]")).status == 400
    assert (await call(app, "POST", "/start_profile", body=b" " * 2**17)).status == 413


async def test_requests_are_aborted_by_name_or_all(app: Starlette, front: ScriptedFront) -> None:
    async def status(body: dict[str, Any], headers: dict[str, str] | None = None) -> int:
        answer = await call(app, "POST", "/abort_request", json_body=body, headers=headers or {})
        return answer.status

    assert [await status(b) for b in ({"rid": "mine"}, {"abort_all": True})] == [200, 200]
    assert front.layer.aborted == ["mine", None]
    wrong: list[dict[str, Any]] = [{}, {"rid": 5}, {"abort_all": "yes"}, {"rid": ""}]
    assert [await status(body) for body in wrong] == [400] * 4
    assert await status({"abort_all": True}, FOREIGN) == 403
    assert front.layer.aborted == ["mine", None]
