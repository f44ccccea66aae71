"""Every moment of a request's life × what can end it: one terminal event, and nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import statistics
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pd_eagle.http.app import make_app
from pd_eagle.requests.policy import ServicePolicy
from tests.asgi import Exchange
from tests.process.stage import ONE_TRY, Stage, request
from tests.scripted import Act, Script, ScriptedOpenAI

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from pd_eagle.http.app import OpenAI
    from pd_eagle.requests.health import Health
    from pd_eagle.requests.service import Service

#: How long a request with a deadline has; the moment is reached well before.
DEADLINE_S = 0.5
NEW_TOKENS = 8
#: What has been sent at a moment, after the head of the answer.
EVENTS = {"first_delta": 1, "midway": 5, "finished": NEW_TOKENS}
#: One request runs at a time, and another may wait.
POLICY = ServicePolicy(
    request_timeout_s=15.0,
    retry_limit=0,
    resume=False,
    max_inflight=1,
    max_queue=1,
    restarts=ONE_TRY.restarts,
)
SCRIPTS = {
    "prefill-0": Script(acts={"p": Act("hang")}),
    "decode-0": Script(
        acts={
            "b": Act("hang"),
            "s": Act("hang"),
            "t": Act("no_transfer"),
            "1": Act("hang", after=1),
            "5": Act("hang", after=5),
        }
    ),
}


@dataclass
class Front:
    """What the application needs of a front."""

    api: OpenAI | None
    api_key: str | None = None
    admin_api_key: str | None = None
    operations: Any = None
    keep_alive_s = 0.0
    max_body_memory_bytes = 2**20
    failing = False

    def health(self) -> Health:
        raise AssertionError("nobody asks for it here")

    def metrics(self, accept: str) -> tuple[bytes, str]:
        raise AssertionError("nobody asks for it here")

    def admit(self, client: str) -> contextlib.AbstractContextManager[None]:
        """Leave it to the service."""
        return contextlib.nullcontext()


@dataclass
class Scene:
    """A request at a moment of its life. `events` of its answer have been read."""

    stage: Stage
    service: Service
    exchange: Exchange
    blocked: bool
    status: int = 0

    async def read(self, events: int) -> None:
        """Read so many events; when the client does not read, the last is left in `send`."""
        self.status = (await self.exchange.next_message())["status"]
        for _ in range(events - self.blocked):
            await self.exchange.next_message()
        if self.blocked:
            await self.exchange.blocked.wait()


async def queued(scene: Scene) -> None:
    while not scene.service.queued:  # noqa: ASYNC110 - at the first turn of the loop, not later
        await asyncio.sleep(0)


async def submitted(scene: Scene) -> None:
    while not all(w.inflight for w in scene.service.workers):  # noqa: ASYNC110 - as above
        await asyncio.sleep(0)


async def prefilling(scene: Scene) -> None:
    await scene.stage.journal.line("prefill-0 . hang")


async def transferring(scene: Scene) -> None:
    await scene.stage.journal.line("decode-0 . no_transfer")


async def first_delta(scene: Scene) -> None:
    await scene.read(EVENTS["first_delta"])


async def midway(scene: Scene) -> None:
    await scene.read(EVENTS["midway"])


async def finished(scene: Scene) -> None:
    await scene.read(EVENTS["finished"])


#: The first letter of a prompt says what the scripts do with it.
MOMENTS: dict[str, tuple[str, Callable[[Scene], Awaitable[None]]]] = {
    "queued": ("x", queued),
    "submitted": ("s", submitted),
    "prefilling": ("p", prefilling),
    "transferring": ("t", transferring),
    "first_delta": ("1", first_delta),
    "midway": ("5", midway),
    "finished": ("x", finished),
}


async def client_gone(scene: Scene) -> None:
    scene.exchange.hang_up()


async def deadline(scene: Scene) -> None:
    """Time passes."""


async def shutdown(scene: Scene) -> None:
    await scene.service.stop()


async def worker_death(scene: Scene) -> None:
    # after the first delta a dead prefill worker ends nothing
    prefills = any("prefill-0 . hang" in line for line in scene.stage.journal.lines)
    worker = scene.service.workers[0 if prefills else 1]
    os.kill(worker.pid or 0, signal.SIGKILL)
    await scene.stage.journal.line(f"{worker.name} failed: ")


CAUSES = {
    "client_gone": client_gone,
    "client_gone_send_blocked": client_gone,
    "deadline": deadline,
    "shutdown": shutdown,
    "worker_death": worker_death,
}
#: What a client that is there is told.
CODES = {"deadline": "deadline_exceeded", "shutdown": "not_serving", "worker_death": "worker_died"}


@pytest.fixture
async def service(forked: Stage) -> AsyncIterator[Service]:
    service = await forked.service("prefill", "decode", scripts=SCRIPTS, policy=POLICY)
    yield service
    await service.stop()


def terminals(events: list[Any]) -> list[str]:
    """Return the terminal events of a stream: codes of errors, and the end of a whole answer."""
    errors = [event["error"]["code"] for event in events if event != "[DONE]" and "error" in event]
    return errors or ["done" for event in events if event == "[DONE]"]


@pytest.mark.parametrize(("moment", "cause"), list(itertools.product(MOMENTS, CAUSES)))
async def test_one_end_and_nothing_left(
    forked: Stage, service: Service, moment: str, cause: str
) -> None:
    letter, reached = MOMENTS[moment]
    body: dict[str, Any] = {"prompt": letter, "max_tokens": NEW_TOKENS, "stream": True}
    if cause == "deadline":
        body["timeout"] = DEADLINE_S
    app = make_app(Front(ScriptedOpenAI(service, {"served_model_name": "letters"})))
    blocker = service.stream(request("b"))
    running = asyncio.create_task(anext(blocker)) if moment == "queued" else None
    await asyncio.sleep(0)  # so that it comes first
    exchange = Exchange(app, "POST", "/v1/completions", body=json.dumps(body).encode())
    scene = Scene(forked, service, exchange, blocked="blocked" in cause)
    if scene.blocked:
        exchange.stop_reading(after=EVENTS.get(moment, 0))
    await exchange.begin()
    await reached(scene)
    await CAUSES[cause](scene)

    rest = await exchange.rest()
    if "gone" not in cause:
        check_the_one_terminal(moment, cause, scene.status, rest)
    if running is not None:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    async with aclosing(blocker):
        pass
    assert (service.open, service.inflight, service.queued) == (0, 0, 0)
    assert service.admission.tokens == 0
    assert [worker.inflight for worker in service.workers] == [0, 0]
    await forked.idle(*(w for w in service.workers if w.state == "ready"))


async def test_both_halves_hear_of_it_within_100_ms(forked: Stage, service: Service) -> None:
    """The median of several: one may meet a busy machine."""
    app = make_app(Front(ScriptedOpenAI(service, {"served_model_name": "letters"})))
    body = json.dumps({"prompt": "t", "stream": True}).encode()
    took_s = []
    for number in range(7):
        exchange = Exchange(app, "POST", "/v1/completions", body=body)
        await exchange.begin()
        told = await forked.journal.lines_with(r"decode-0 . no_transfer (\w+)", number + 1)
        rid = told[-1][1]
        await forked.journal.line(f"prefill-0 . got {rid}")  # what it never got, it need not abort
        began = time.monotonic()
        exchange.hang_up()
        for name in ("prefill-0", "decode-0"):
            await forked.journal.line(f"{name} . aborted {rid}")
        took_s.append(time.monotonic() - began)
        await exchange.rest()
    assert statistics.median(took_s) < 0.1


def check_the_one_terminal(moment: str, cause: str, status: int, rest: list[Any]) -> None:
    wanted = "done" if moment == "finished" else CODES[cause]
    if moment == "queued" and cause == "worker_death":
        wanted = "not_serving"  # it never came to the worker that died
    if not status:
        start, *rest = rest
        status = start["status"]
    payload = b"".join(message.get("body", b"") for message in rest)
    assert [message.get("more_body", False) for message in rest].count(False) == 1
    if status != 200:
        assert json.loads(payload)["error"]["code"] == wanted
        return
    lines = [line.removeprefix("data: ") for line in payload.decode().split("\n\n") if line]
    assert terminals([line if line == "[DONE]" else json.loads(line) for line in lines]) == [wanted]
