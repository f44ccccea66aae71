"""The service described: every route that is served, in a document that stands by itself."""

from __future__ import annotations

import re

import pytest
from starlette.routing import Route

from pd_eagle.http import openapi
from pd_eagle.http.app import make_app
from pd_eagle.http.unserved import UNSERVED
from tests.asgi import call
from tests.unit.test_app import ScriptedFront


@pytest.fixture
def front() -> ScriptedFront:
    return ScriptedFront()


async def test_every_served_route_is_described(front: ScriptedFront) -> None:
    app = make_app(front)
    answer = await call(app, "GET", "/openapi.json")
    paths = answer.json()["paths"]
    routes = {r.path: r.methods for r in app.routes if isinstance(r, Route)}
    served = {re.sub(r":\w+", "", path) for path in routes if path not in UNSERVED}
    assert paths.keys() == served
    assert set(paths["/generate"]) == {"post", "put"}
    assert set(paths["/flush_cache"]) == {"get", "post"}


async def test_bodies_are_described_where_they_are_read(front: ScriptedFront) -> None:
    document = (await call(make_app(front), "GET", "/openapi.json")).json()
    for path, name in openapi.BODIES.items():
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert body["schema"] == {"$ref": f"#/components/schemas/{name}"}
    assert document["components"]["schemas"] == {"chat": {"type": "object"}}


def test_a_path_tells_its_parameters() -> None:
    found = openapi.document([("/v1/models/{model:path}", ("GET",))], {})["paths"]
    (parameter,) = found["/v1/models/{model}"]["get"]["parameters"]
    assert (parameter["name"], parameter["in"], parameter["required"]) == ("model", "path", True)


async def test_the_page_asks_no_other_host(front: ScriptedFront) -> None:
    answer = await call(make_app(front), "GET", "/docs")
    assert answer.status == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not re.findall(r"(?:https?:)?//\w", answer.body.decode())


async def test_the_document_wants_the_key(front: ScriptedFront) -> None:
    front.api_key = "key"
    assert (await call(make_app(front), "GET", "/openapi.json")).status == 401
