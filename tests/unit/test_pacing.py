"""Requests take turns; health does not wait."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from pd_eagle.http.pacing import Turns

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

BURST = 100
A_TURN = 4


class Door:
    """The application behind the turns; knows who came in, in which turn of the loop."""

    def __init__(self) -> None:
        self.came: list[tuple[int, str]] = []
        self.turn = 0
        self.turns = Turns(self, a_turn=A_TURN, at_once="/health")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.came.append((self.turn, scope["path"]))

    def count_turns(self) -> None:
        self.turn += 1
        if len(self.came) < BURST:
            asyncio.get_running_loop().call_soon(self.count_turns)

    def ask(self, path: str) -> asyncio.Task[None]:
        async def receive() -> Message:
            raise AssertionError("nothing is read at the door")

        async def send(_: Message) -> None:
            raise AssertionError("nothing is said at the door")

        scope: Scope = {"type": "http", "path": path}
        return asyncio.ensure_future(self.turns(scope, receive, send))


async def test_a_burst_comes_in_a_few_a_turn_and_in_order() -> None:
    door = Door()
    asyncio.get_running_loop().call_soon(door.count_turns)
    await asyncio.gather(*(door.ask(f"/{number}") for number in range(BURST)))
    assert [path for _, path in door.came] == [f"/{number}" for number in range(BURST)]
    in_one_turn = [[turn for turn, _ in door.came].count(n) for n in range(door.turn + 1)]
    assert max(in_one_turn) <= A_TURN
    assert sum(in_one_turn) == BURST


async def test_health_overtakes_a_burst() -> None:
    door = Door()
    waiting = [door.ask(f"/{number}") for number in range(BURST)]
    await door.ask("/health/live")
    assert "/health/live" in [path for _, path in door.came[: 3 * A_TURN]]
    await asyncio.gather(*waiting)


async def test_whoever_gives_up_costs_no_turn() -> None:
    door = Door()
    waiting = [door.ask(f"/{number}") for number in range(3 * A_TURN)]
    await asyncio.sleep(0)
    for task in waiting[A_TURN : 2 * A_TURN]:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert len(door.came) == 2 * A_TURN
    with pytest.raises(asyncio.CancelledError):
        waiting[A_TURN].result()


async def test_one_after_a_quiet_time_does_not_wait() -> None:
    door = Door()
    for number in range(2 * A_TURN):
        await door.ask(f"/{number}")
        assert len(door.came) == number + 1
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert not door.turns._waiting
    await asyncio.sleep(0)
    assert not door.turns._turning
