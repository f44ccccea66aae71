"""A burst of requests is let in a few at a time; health checks do not wait."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from pd_eagle.http.pacing import Pacing

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

BURST = 100
PER_ITERATION = 4


class Paced:
    """The application behind the pacing; records each request and its iteration of the loop."""

    def __init__(self) -> None:
        self.came: list[tuple[int, str]] = []
        self.iteration = 0
        self.pacing = Pacing(self, per_iteration=PER_ITERATION, exempt="/health")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.came.append((self.iteration, scope["path"]))

    def count_iterations(self) -> None:
        self.iteration += 1
        if len(self.came) < BURST:
            asyncio.get_running_loop().call_soon(self.count_iterations)

    def ask(self, path: str) -> asyncio.Task[None]:
        async def receive() -> Message:
            raise AssertionError("nothing is read here")

        async def send(_: Message) -> None:
            raise AssertionError("nothing is sent here")

        scope: Scope = {"type": "http", "path": path}
        return asyncio.ensure_future(self.pacing(scope, receive, send))


async def test_a_burst_is_let_in_a_few_per_iteration_and_in_order() -> None:
    app = Paced()
    asyncio.get_running_loop().call_soon(app.count_iterations)
    await asyncio.gather(*(app.ask(f"/{number}") for number in range(BURST)))
    assert [path for _, path in app.came] == [f"/{number}" for number in range(BURST)]
    in_one_iteration = [
        [iteration for iteration, _ in app.came].count(n) for n in range(app.iteration + 1)
    ]
    assert max(in_one_iteration) <= PER_ITERATION
    assert sum(in_one_iteration) == BURST


async def test_health_overtakes_a_burst() -> None:
    app = Paced()
    waiting = [app.ask(f"/{number}") for number in range(BURST)]
    await app.ask("/health/live")
    assert "/health/live" in [path for _, path in app.came[: 3 * PER_ITERATION]]
    await asyncio.gather(*waiting)


async def test_a_cancelled_request_takes_no_place() -> None:
    app = Paced()
    waiting = [app.ask(f"/{number}") for number in range(3 * PER_ITERATION)]
    await asyncio.sleep(0)
    for task in waiting[PER_ITERATION : 2 * PER_ITERATION]:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert len(app.came) == 2 * PER_ITERATION
    with pytest.raises(asyncio.CancelledError):
        waiting[PER_ITERATION].result()


async def test_one_after_a_quiet_time_does_not_wait() -> None:
    app = Paced()
    for number in range(2 * PER_ITERATION):
        await app.ask(f"/{number}")
        assert len(app.came) == number + 1
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert not app.pacing._waiting
    await asyncio.sleep(0)
    assert not app.pacing._scheduled
