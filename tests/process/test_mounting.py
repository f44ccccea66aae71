"""`PDEngine.asgi()`: the whole HTTP application in somebody else's FastAPI or Starlette."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount

from pd_eagle import front_thread
from tests.asgi import Exchange, call
from tests.process import pd_scripted
from tests.process.pd_scripted import scripted_stack
from tests.scripted import answer_to

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from starlette.types import ASGIApp

    from pd_eagle import PDEngine

BODY = json.dumps({"prompt": "abc", "max_tokens": 4}).encode()
STREAMED = json.dumps({"prompt": "abc", "max_tokens": 4, "stream": True}).encode()
COMPLETIONS = "/llm/v1/completions"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PDEngine]:
    with scripted_stack(), pd_scripted.start(tmp_path_factory.mktemp("model")) as engine:
        yield engine


def in_fastapi(engine: PDEngine) -> ASGIApp:
    app = FastAPI()

    @app.get("/own")
    async def own() -> dict[str, Any]:
        whole = await engine.async_generate("abc", {"max_new_tokens": 4})
        return {"text": whole["text"]}

    app.mount("/llm", engine.asgi())
    return app


def in_starlette(engine: PDEngine) -> ASGIApp:
    return Starlette(routes=[Mount("/llm", engine.asgi())])


@pytest.mark.parametrize("mounted", [in_fastapi, in_starlette])
async def test_every_route_is_there(engine: PDEngine, mounted: Any) -> None:
    app = mounted(engine)
    health = await call(app, "GET", "/llm/health")
    assert (health.status, health.json()["status"]) == (200, "ready")
    whole = await call(app, "POST", COMPLETIONS, body=BODY)
    assert whole.json() == {"text": answer_to("abc", 4)}
    assert (await call(app, "GET", "/llm/v1/models")).json()["data"][0]["id"] == "letters"
    refused = await call(app, "POST", COMPLETIONS, body=b"{")
    assert refused.status == 400
    assert (await call(app, "GET", "/llm/nonsense")).status == 404


async def test_the_applications_own_routes_use_the_same_engine(engine: PDEngine) -> None:
    own = await call(in_fastapi(engine), "GET", "/own")
    assert own.json() == {"text": answer_to("abc", 4)}


async def test_many_streams_at_once(engine: PDEngine) -> None:
    app = in_fastapi(engine)
    answers = await asyncio.gather(
        *(call(app, "POST", COMPLETIONS, body=STREAMED) for _ in range(20))
    )
    for answer in answers:
        events = [line for line in answer.body.decode().split("\n\n") if line]
        assert events[-1] == "data: [DONE]"
        texts = [json.loads(event.removeprefix("data: "))["text"] for event in events[:-1]]
        assert "".join(texts) == answer_to("abc", 4)


async def test_a_client_that_leaves_ends_its_request(engine: PDEngine) -> None:
    body = json.dumps({"prompt": "h", "stream": True}).encode()
    async with Exchange(in_fastapi(engine), "POST", COMPLETIONS, body=body) as exchange:
        while (await exchange.next_message())["type"] != "http.response.body":
            pass
        assert engine.health()["inflight"] == 1
        exchange.hang_up()
    async with asyncio.timeout(10):
        while engine.health()["inflight"]:  # noqa: ASYNC110 - another loop changes it
            await asyncio.sleep(0.01)


async def test_an_engine_that_was_shut_down_answers_so(tmp_path: Path) -> None:
    with scripted_stack():
        engine = await asyncio.to_thread(pd_scripted.start, tmp_path)
    app = in_starlette(engine)
    hanging = asyncio.create_task(
        call(app, "POST", COMPLETIONS, body=json.dumps({"prompt": "h"}).encode())
    )
    while not engine.health()["inflight"]:  # noqa: ASYNC110 - another loop changes it
        await asyncio.sleep(0.01)
    await asyncio.to_thread(engine.shutdown)
    assert (await hanging).status == 503
    late = await call(app, "POST", COMPLETIONS, body=BODY)
    assert late.status == 503
    assert "has been shut down" in late.json()["error"]["message"]
    assert repr(engine).startswith("PDEngine('letters', shut down)")


async def test_the_application_keeps_its_engine(tmp_path: Path) -> None:
    with scripted_stack():
        app = await asyncio.to_thread(lambda: pd_scripted.start(tmp_path).asgi())
        whole = await call(app, "POST", "/v1/completions", body=BODY)
        assert whole.json() == {"text": answer_to("abc", 4)}
    del app
    gc.collect()
    await asyncio.to_thread(front_thread.await_endings)
