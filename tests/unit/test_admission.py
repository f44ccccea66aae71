"""Who runs, who waits, who is refused, and that nothing of it is ever lost."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pd_eagle.errors import DeadlineExceeded, Overloaded, TooManyRequests
from pd_eagle.requests.admission import Admission, Limits

if TYPE_CHECKING:
    from collections.abc import Awaitable

pytestmark = pytest.mark.both_loops
_WAIT_S = 0.002


def admission(inflight: int = 2, tokens: int = 100, queue: int = 3, wait_s: float = 5) -> Admission:
    return Admission(Limits(inflight, tokens, queue, wait_s))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def later(work: Awaitable[None]) -> asyncio.Task[None]:
    return asyncio.ensure_future(work)


async def test_bounded_by_requests() -> None:
    door = admission()
    await door.enter("a", 1)
    await door.enter("b", 1)
    third = later(door.enter("c", 1))
    await settle()
    assert (door.inflight, door.queued) == (2, 1)
    door.leave(1)
    await third
    assert (door.inflight, door.queued, door.tokens) == (2, 0, 2)


async def test_bounded_by_tokens_and_nobody_smaller_overtakes() -> None:
    door = admission(inflight=10)
    await door.enter("a", 70)
    large, small = later(door.enter("b", 60)), later(door.enter("c", 5))
    await settle()
    assert door.queued == 2
    door.leave(70)
    await asyncio.gather(large, small)
    assert (door.inflight, door.tokens) == (2, 65)


async def test_one_larger_than_everything_runs_alone() -> None:
    door = admission()
    await door.enter("a", 1000)
    waiting = later(door.enter("b", 1))
    await settle()
    assert not waiting.done()
    door.leave(1000)
    await waiting


async def test_a_full_queue_refuses_at_once() -> None:
    door = admission(inflight=1, queue=1)
    await door.enter("a", 1)
    waiting = later(door.enter("b", 1))
    await settle()
    with pytest.raises(Overloaded, match=r"1 requests run and 1 wait.*MAX_QUEUE"):
        door.refuse_if_full()
    with pytest.raises(Overloaded):
        await door.enter("c", 1)
    assert door.refused == {"queue_full": 2}
    door.leave(1)
    await waiting
    door.refuse_if_full()


async def test_waiting_too_long_is_refused() -> None:
    door = admission(inflight=1, wait_s=0.01)
    await door.enter("a", 1)
    with pytest.raises(Overloaded, match="QUEUE_TIMEOUT_S"):
        await door.enter("b", 1)
    assert (door.inflight, door.queued) == (1, 0)


async def test_a_batch_does_not_hold_up_a_single_stream() -> None:
    door = admission(inflight=1, queue=100)
    await door.enter("first", 1)
    order: list[str] = []

    async def one(group: str, name: str) -> None:
        await door.enter(group, 1)
        order.append(name)
        door.leave(1)

    batch = [later(one("batch", f"batch {i}")) for i in range(5)]
    await settle()
    single = later(one("single", "single"))
    await settle()
    door.leave(1)
    await asyncio.gather(*batch, single)
    assert order.index("single") == 1
    assert [name for name in order if name != "single"] == [f"batch {i}" for i in range(5)]


async def test_leaving_the_queue() -> None:
    door = admission(inflight=1)
    await door.enter("a", 1)
    gone, stays = later(door.enter("b", 1)), later(door.enter("b", 1))
    await settle()
    gone.cancel()
    await settle()
    assert door.queued == 1
    door.leave(1)
    await stays
    assert (door.inflight, door.queued, door.tokens) == (1, 0, 1)


async def test_the_turn_that_comes_with_the_cancellation_is_given_back() -> None:
    door = admission(inflight=1)
    await door.enter("a", 1)
    waiting = later(door.enter("b", 1))
    await settle()
    door.leave(1)  # its turn is set in this very step of the loop
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
        door.leave(1)
    await settle()
    assert (door.inflight, door.tokens) == (0, 0)


@pytest.mark.parametrize("seed", range(20))
async def test_nothing_is_lost_whoever_gives_up(seed: int) -> None:
    draw = random.Random(seed)
    door = admission(inflight=3, tokens=50, queue=1000)

    async def one(number: int) -> None:
        cost = draw.randint(1, 60)
        await door.enter(number % 4, cost)
        try:
            for _ in range(draw.randint(0, 3)):
                await asyncio.sleep(0)
        finally:
            door.leave(cost)

    tasks = [later(one(number)) for number in range(100)]
    while not all(task.done() for task in tasks):
        draw.choice(tasks).cancel()
        await asyncio.sleep(0)
    assert (door.inflight, door.tokens, door.queued) == (0, 0, 0)
    await door.enter("after", 1)


async def test_the_deadline_holds_in_the_queue() -> None:
    door = admission(inflight=1)
    await door.enter("a", 1)
    with pytest.raises(DeadlineExceeded, match="before its turn came"):
        await door.enter("b", 1, asyncio.get_running_loop().time() + 0.01)
    assert (door.queued, door.refused) == (0, {})
    door.leave(1)
    await door.enter("c", 1)


def test_one_client_may_have_so_many_open() -> None:
    door = Admission(Limits(10, 100, 10, 5, max_per_client=2))
    door.admit_client("a")
    door.admit_client("a")
    with pytest.raises(TooManyRequests, match=r"a has 2 requests open: .*MAX_INFLIGHT_PER_CLIENT"):
        door.admit_client("a")
    door.admit_client("b")
    door.dismiss_client("a")
    door.admit_client("a")
    assert door.refused == {"client_limit": 1}


def test_whoever_was_let_in_has_a_place() -> None:
    door = admission(inflight=1, queue=1)
    door.admit_client("a")
    door.admit_client("b")  # both are still being read: nobody runs, nobody waits
    with pytest.raises(Overloaded, match=r"0 requests run and 0 wait.*MAX_QUEUE"):
        door.refuse_if_full()
    door.dismiss_client("a")
    door.refuse_if_full()


async def test_a_call_of_this_process_waits_as_long_as_it_takes() -> None:
    door = admission(inflight=1, queue=0, wait_s=0.01)
    await door.enter("a", 1)
    own = later(door.enter("own", 1, None))
    await asyncio.sleep(0.05)
    assert not own.done()
    with pytest.raises(Overloaded):
        await door.enter("client", 1)
    door.leave(1)
    await own
    assert (door.inflight, door.queued) == (1, 0)


async def test_the_turn_that_comes_with_the_timeout_is_taken() -> None:
    for turn_first in (True, False):
        door = admission(inflight=1, wait_s=_WAIT_S)
        await door.enter("a", 1)
        waiting = later(door.enter("b", 1))
        await settle()
        _sleep_through_the_timeout()  # nothing else runs meanwhile: a busy loop's turn
        if turn_first:  # uvloop runs timers before what is ready, asyncio after it
            door.leave(1)
        else:
            asyncio.get_running_loop().call_soon(door.leave, 1)
        with contextlib.suppress(Overloaded):
            await waiting
            door.leave(1)
        await settle()
        assert (door.inflight, door.tokens, door.queued) == (0, 0, 0)


async def test_the_deadline_that_comes_with_the_turn_loses_no_place() -> None:
    for turn_first in (True, False):
        door = admission(inflight=1, wait_s=60)
        await door.enter("a", 1)
        waiting = later(door.enter("b", 1, asyncio.get_running_loop().time() + _WAIT_S))
        await settle()
        _sleep_through_the_timeout()
        if turn_first:
            door.leave(1)
        else:
            asyncio.get_running_loop().call_soon(door.leave, 1)
        with contextlib.suppress(DeadlineExceeded):
            await waiting
            door.leave(1)
        await settle()
        assert (door.inflight, door.tokens, door.queued) == (0, 0, 0)


def _sleep_through_the_timeout() -> None:
    time.sleep(2 * _WAIT_S)


class _Crowd:
    """Requests that come, wait, run, leave and give up as they are told, and who holds a place."""

    def __init__(self) -> None:
        self.door = admission(inflight=2, tokens=10, queue=4, wait_s=_WAIT_S)
        self.tasks: list[asyncio.Task[None]] = []
        self.running: list[asyncio.Event] = []

    async def _one(self, cost: int, deadline_s: float | None) -> None:
        now = asyncio.get_running_loop().time()
        try:
            await self.door.enter(cost % 3, cost, None if deadline_s is None else now + deadline_s)
        except (Overloaded, DeadlineExceeded):
            return
        may_leave = asyncio.Event()
        self.running.append(may_leave)
        try:
            await may_leave.wait()
        finally:
            self.running.remove(may_leave)
            self.door.leave(cost)

    def come(self, cost: int, deadline_s: float | None) -> None:
        self.tasks.append(later(self._one(cost, deadline_s)))

    def leave(self, which: int) -> None:
        if self.running:
            self.running[which % len(self.running)].set()

    def give_up(self, which: int) -> None:
        if self.tasks:
            self.tasks[which % len(self.tasks)].cancel()

    async def go_home(self) -> None:
        for _ in range(300):
            if all(task.done() for task in self.tasks):
                break
            for may_leave in self.running:
                may_leave.set()
            await asyncio.sleep(_WAIT_S / 10)


_which = st.integers(0, 9)
_steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("come"), st.integers(1, 12), st.sampled_from([None, 0.0, _WAIT_S / 2, 60.0])
        ),
        st.tuples(st.sampled_from(["leave", "leave soon", "give up", "give up soon"]), _which),
        st.tuples(st.sampled_from(["turn of the loop", "block"])),
    ),
    max_size=30,
)


@settings(max_examples=100)
@given(_steps)
async def test_every_place_comes_back_whatever_comes_in_one_turn_of_the_loop(
    steps: list[tuple[Any, ...]],
) -> None:
    crowd = _Crowd()
    soon = asyncio.get_running_loop().call_soon
    for what, *how in steps:
        match what:
            case "come":
                crowd.come(*how)
            case "leave":
                crowd.leave(*how)
            case "leave soon":
                soon(crowd.leave, *how)
            case "give up":
                crowd.give_up(*how)
            case "give up soon":
                soon(crowd.give_up, *how)
            case "block":
                _sleep_through_the_timeout()
            case _:
                await asyncio.sleep(0)
        assert len(crowd.running) <= crowd.door.inflight <= 2
    await crowd.go_home()
    await asyncio.gather(*crowd.tasks, return_exceptions=True)
    assert (crowd.door.inflight, crowd.door.tokens, crowd.door.queued) == (0, 0, 0)
