"""The router: every worker in turn, only ready ones, only links that work."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from pd_eagle.errors import NotServing
from pd_eagle.requests.router import Router
from pd_eagle.workers.worker_state import TRANSITIONS
from tests.unit.scripted_pair import Half, pair_of, worker

if TYPE_CHECKING:
    from pd_eagle.workers.worker_state import State


def halves(prefill: int, decode: int) -> list[Half]:
    return [Half("prefill", n) for n in range(prefill)] + [Half("decode", n) for n in range(decode)]


def router(workers: list[Half]) -> Router:
    return Router([worker(half) for half in workers])


@pytest.mark.parametrize(
    ("prefill", "decode", "turns"),
    [
        (1, 1, ["0+0", "0+0"]),
        (1, 2, ["0+0", "0+1", "0+0", "0+1"]),
        (1, 3, ["0+0", "0+1", "0+2", "0+0"]),
        (2, 1, ["0+0", "1+0", "0+0"]),
        (2, 3, ["0+0", "1+1", "0+2", "1+0", "0+1", "1+2", "0+0"]),
    ],
)
def test_workers_of_each_role_take_turns(prefill: int, decode: int, turns: list[str]) -> None:
    routes = router(halves(prefill, decode))
    picked = [routes.pick() for _ in turns]
    names = [pair.name.replace("prefill-", "").replace("decode-", "") for pair in picked]
    assert names == turns


@pytest.mark.parametrize(("prefill", "decode"), [(1, 6), (2, 2), (2, 6), (3, 5)])
def test_every_worker_gets_its_share(prefill: int, decode: int) -> None:
    routes = router(halves(prefill, decode))
    served: Counter[str] = Counter()
    for _ in range(prefill * decode * 4):
        served.update(routes.pick().name.split("+"))
    assert len(served) == prefill + decode
    for count, role in ((prefill, "prefill"), (decode, "decode")):
        of_role = [n for name, n in served.items() if name.startswith(role)]
        assert max(of_role) - min(of_role) <= 1, count


def test_unified_workers_take_turns() -> None:
    routes = router([Half("unified", n) for n in range(2)])
    assert [routes.pick().name for _ in range(3)] == ["unified-0", "unified-1", "unified-0"]
    assert routes.pick().prefill is None


@pytest.mark.parametrize("state", [state for state in TRANSITIONS if state != "ready"])
def test_only_ready_workers_serve(state: State) -> None:
    prefill, first, second = workers = halves(1, 2)
    routes = router(workers)
    first.state = state
    assert {routes.pick().decode.name for _ in range(4)} == {"decode-1"}
    assert [pair.name for pair in routes.all_pairs()] == ["prefill-0+decode-1"]
    prefill.state = state
    with pytest.raises(NotServing):
        routes.pick()
    assert second.state == "ready"


@pytest.mark.parametrize(("prefill", "decode"), [(0, 0), (1, 0), (0, 1)])
def test_half_a_pair_serves_nothing(prefill: int, decode: int) -> None:
    with pytest.raises(NotServing):
        router(halves(prefill, decode)).pick()


def test_all_pairs_are_all_of_them() -> None:
    routes = router(halves(2, 3))
    assert len({pair.name for pair in routes.all_pairs()}) == 6


def test_a_pair_that_was_tried_is_taken_only_when_there_is_no_other() -> None:
    routes = router(halves(1, 2))
    assert {routes.pick(["prefill-0+decode-0"]).decode.name for _ in range(4)} == {"decode-1"}
    alone = router(halves(1, 1))
    assert alone.pick(["prefill-0+decode-0"]).name == "prefill-0+decode-0"


def test_a_broken_link_is_not_taken_at_all() -> None:
    routes = router(halves(2, 2))
    routes.mark_broken("prefill-0+decode-0", "prefill-1+decode-0")
    assert {routes.pick().decode.name for _ in range(8)} == {"decode-1"}
    routes.mark_broken("prefill-0+decode-1")
    assert {routes.pick().name for _ in range(8)} == {"prefill-1+decode-1"}
    routes.mark_broken("prefill-1+decode-1")
    with pytest.raises(NotServing):
        routes.pick()


def test_every_room_is_new_and_at_the_pairs_own_prefill() -> None:
    pair = pair_of(Half("decode"), Half("prefill", 3))
    rooms = [pair.open_room() for _ in range(1000)]
    numbers = {room.room for room in rooms if room is not None}
    assert len(numbers) == 1000
    assert all(0 <= number < 2**63 for number in numbers)
    assert {room.port for room in rooms if room is not None} == {9003}


def test_a_unified_worker_needs_no_room() -> None:
    assert pair_of(Half("unified")).open_room() is None
