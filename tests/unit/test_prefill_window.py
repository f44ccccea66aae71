"""The prefill window: bounded, shortest first, nobody starves, and nothing is left outstanding."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pd_eagle.errors import DeadlineExceeded
from pd_eagle.requests.prefill_window import (
    AGEING_TOKENS_PER_S,
    PrefillWindow,
    PrefillWindows,
    Turn,
)

LIMIT = 8192
FOREVER = 1e9


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(eq=False)
class Asked:
    """One prompt of a schedule, and where it came among those that were let in."""

    arrived: float
    turn: Turn
    place: int | None = None


def window(clock: Clock | None = None) -> PrefillWindow:
    return PrefillWindow(LIMIT, clock or Clock())


async def test_prompts_go_at_once_while_there_is_room() -> None:
    here = window()
    turns = [here.turn(tokens) for tokens in (6000, 2000, 192)]
    assert all(turn.granted for turn in turns)
    assert (here.outstanding, here.held) == (LIMIT, 0)
    assert not here.turn(1).granted
    assert here.held == 1


async def test_the_shortest_of_those_who_wait_goes_first() -> None:
    here = window()
    first = here.turn(LIMIT)
    long, short = here.turn(6000), here.turn(300)
    first.release()
    assert short.granted
    assert long.granted  # both fit
    third, fourth = here.turn(7000), here.turn(5000)
    short.release()
    long.release()
    assert (third.granted, fourth.granted) == (False, True)


async def test_a_prompt_larger_than_the_window_goes_alone() -> None:
    here = window()
    small = here.turn(100)
    huge = here.turn(30_000)
    assert not huge.granted
    small.release()
    assert huge.granted
    assert not here.turn(1).granted
    huge.release()
    assert here.outstanding == 1


async def test_waiting_counts_like_being_shorter() -> None:
    clock = Clock()
    here = window(clock)
    running = here.turn(LIMIT)
    long = here.turn(6000)
    clock.now = 6000 / AGEING_TOKENS_PER_S  # from now on nobody new goes before it
    late = here.turn(1)
    filler = here.turn(LIMIT)
    running.release()
    assert long.granted
    assert late.granted
    assert not filler.granted


async def test_a_wait_ends_at_the_deadline_and_gives_its_place_back() -> None:
    here = window()
    running = here.turn(LIMIT)
    late, other = here.turn(10), here.turn(20)
    with pytest.raises(DeadlineExceeded, match="PREFILL_WINDOW_TOKENS"):
        await late.wait(asyncio.get_running_loop().time() + 0.01)
    late.release()
    running.release()
    assert other.granted
    await other.wait(0.0)  # over already: no deadline counts
    other.release()
    other.release()
    assert (here.outstanding, here.held) == (0, 0)


async def test_a_cancelled_wait_takes_nothing_with_it() -> None:
    here = window()
    running, waiting = here.turn(LIMIT), here.turn(5)
    task = asyncio.create_task(waiting.wait(FOREVER))
    await asyncio.sleep(0)
    running.release()  # the turn comes together with the cancellation
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert here.outstanding == 5
    waiting.release()
    assert here.outstanding == 0


async def test_the_end_of_prefill_releases_and_other_phases_do_not() -> None:
    here, heard = window(), []
    turn = here.turn(7)
    noted = turn.releasing(lambda phase, seconds: heard.append((phase, seconds)))
    noted("first_delta", 1.0)
    assert here.outstanding == 7
    noted("prefill", 2.0)
    assert here.outstanding == 0
    assert heard == [("first_delta", 1.0), ("prefill", 2.0)]


@pytest.mark.parametrize(("limit", "worker"), [(None, "prefill-0"), (0, "prefill-0"), (9, None)])
async def test_without_a_window_nobody_waits(limit: int | None, worker: str | None) -> None:
    windows = PrefillWindows(limit)
    assert all(windows.turn(worker, 10**6).granted for _ in range(100))
    assert windows.by_worker == {}


async def test_each_engine_has_a_window_of_its_own() -> None:
    windows = PrefillWindows(100)
    assert windows.turn("prefill-0", 100).granted
    assert windows.turn("prefill-1", 100).granted
    assert not windows.turn("prefill-0", 1).granted


ACTIONS = st.lists(
    st.tuples(
        st.floats(0, 0.5),  # seconds until it
        st.one_of(
            st.integers(1, 3 * LIMIT),  # a prompt comes
            st.just("prefilled"),  # the oldest in the engine is done
            st.just("gone"),  # whoever waits longest gives up
        ),
    ),
    max_size=120,
)


@settings(max_examples=300, deadline=None)
@given(ACTIONS)
def test_it_is_bounded_fair_and_leaves_nothing(actions: list[tuple[float, int | str]]) -> None:
    asyncio.run(_play(actions))


async def _play(actions: list[tuple[float, int | str]]) -> None:
    clock = Clock()
    here = window(clock)
    asked: list[Asked] = []
    places = 0

    def let_in() -> list[Asked]:
        return [one for one in asked if one.turn.granted and not one.turn._over]

    for pause, action in actions:
        clock.now += pause
        before = {id(one) for one in asked if one.turn.granted}
        if isinstance(action, int):
            asked.append(Asked(clock.now, here.turn(action)))
        elif action == "prefilled" and let_in():
            let_in()[0].turn.release()
        elif waiting := [one for one in asked if not one.turn.granted and not one.turn._over]:
            waiting[0].turn.release()
        for one in asked:
            if one.turn.granted and id(one) not in before:
                one.place, places = places, places + 1
                _check_nobody_is_starved_by(one, asked)
        inside = [one.turn.tokens for one in let_in()]
        assert here.outstanding == sum(inside)
        assert sum(inside) <= LIMIT or len(inside) == 1
        waits = [one for one in asked if not one.turn.granted and not one.turn._over]
        assert here.held == len(waits)
        assert inside or not waits  # somebody is always served
    for _ in range(len(asked) + 1):
        for one in let_in():
            one.turn.release()
    assert (here.outstanding, here.held) == (0, 0)
    assert all(one.turn.granted or one.turn._over for one in asked)


def _check_nobody_is_starved_by(one: Asked, asked: list[Asked]) -> None:
    for other in asked:
        waits = not other.turn.granted and not other.turn._over
        if waits and other.arrived < one.arrived:
            advantage = (other.turn.tokens - one.turn.tokens) / AGEING_TOKENS_PER_S
            assert one.arrived - other.arrived <= advantage + 1e-9
