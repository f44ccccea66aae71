"""Who is suspected of a crash, who must be alone, who is the culprit, and which worker it counts
against.
"""

from __future__ import annotations

import asyncio

from pd_eagle.quarantine import Quarantine, Suspicion


class Scene:
    """A quarantine, whom it blames, and how often it has changed."""

    def __init__(self) -> None:
        self.blamed: list[str] = []
        self.changes = 0
        self.quarantine = Quarantine(self.blamed.append, self._change)

    def _change(self) -> None:
        self.changes += 1

    def enter(self, rid: str, suspicion: Suspicion | None = None) -> Suspicion:
        suspicion = suspicion or Suspicion()
        self.quarantine.begin(rid, suspicion)
        return suspicion

    def crash(self, *rids: str, worker: str = "decode-0") -> bool:
        return self.quarantine.crashed(worker, rids, "IndexError")


def test_a_crash_with_nothing_of_ours_in_it_counts_at_once() -> None:
    scene = Scene()
    assert scene.crash()
    assert scene.crash("a-probe-of-the-canary")
    assert scene.quarantine.reserved is None


def test_suspects_of_one_crash_go_on_as_after_any_death() -> None:
    scene = Scene()
    suspects = [scene.enter(rid) for rid in "ab"]
    assert not scene.crash("a", "b")
    assert [suspect.must_be_alone for suspect in suspects] == [False, False]
    assert scene.quarantine.reserved is None


async def test_a_second_crash_sets_them_apart_one_at_a_time() -> None:
    scene = Scene()
    a, b = scene.enter("a"), scene.enter("b")
    scene.crash("a", "b")
    late = scene.enter("late")
    scene.crash("a", "b", "late", worker="decode-1")
    assert [one.must_be_alone for one in (a, b, late)] == [True, True, False]
    assert scene.quarantine.reserved == "decode-1"
    await scene.quarantine.take_trial(a)
    waiting = asyncio.ensure_future(scene.quarantine.take_trial(b))
    await asyncio.sleep(0)
    assert not waiting.done()
    a.tokens = 1
    scene.quarantine.progressed(a)
    await asyncio.sleep(0)
    assert not waiting.done()
    a.tokens = 2
    scene.quarantine.progressed(a)
    await waiting
    assert (a.on_trial, b.on_trial) == (False, True)
    assert not a.must_be_alone
    assert scene.quarantine.reserved == "decode-1"
    scene.quarantine.end_attempt("b", b)
    assert scene.quarantine.reserved is None


async def test_what_crashes_alone_is_the_culprit_and_counts_against_nobody() -> None:
    scene = Scene()
    poison, innocent = scene.enter("p"), scene.enter("i")
    scene.crash("p", "i")
    scene.crash("p", "i")
    await scene.quarantine.take_trial(poison)
    assert not scene.crash("p")
    assert poison.convicted_by == "decode-0: IndexError"
    assert innocent.convicted_by is None
    scene.quarantine.end_attempt("p", poison)
    for one in (poison, innocent):
        scene.quarantine.close(one)
    assert scene.blamed == []
    assert scene.quarantine.reserved is None


def test_once_alone_may_be_chance() -> None:
    scene = Scene()
    lone = scene.enter("a")
    assert not scene.crash("a")
    assert lone.convicted_by is None
    scene.crash("a")
    assert lone.convicted_by == "decode-0: IndexError"


def test_a_crash_without_a_culprit_counts_when_the_last_suspect_is_over() -> None:
    scene = Scene()
    a, b = scene.enter("a"), scene.enter("b")
    assert not scene.crash("a", "b", worker="prefill-0")
    scene.quarantine.end_attempt("a", a)
    scene.quarantine.close(a)
    assert scene.blamed == []
    scene.quarantine.end_attempt("b", b)
    scene.quarantine.close(b)
    assert scene.blamed == ["prefill-0"]


def test_after_many_crashes_a_request_stays_alone_to_its_end() -> None:
    scene = Scene()
    a = scene.enter("a")
    scene.enter("b")
    for _ in range(4):
        scene.crash("a", "b")
    a.tokens = 10_000
    assert a.must_be_alone


async def test_one_that_leaves_while_it_waits_holds_nobody_up() -> None:
    scene = Scene()
    a, b = scene.enter("a"), scene.enter("b")
    scene.crash("a", "b")
    scene.crash("a", "b")
    await scene.quarantine.take_trial(a)
    scene.quarantine.close(b)  # its client is gone, before its trial
    scene.quarantine.close(a)  # its time was up before its worker was empty
    assert scene.quarantine.reserved is None
    await scene.quarantine.take_trial(b)


def test_the_reserved_worker_stays_the_same_until_it_is_moved() -> None:
    scene = Scene()
    for rid in "abc":
        scene.enter(rid)
    for worker in ("decode-0", "decode-1"):
        scene.crash("a", "b", "c", worker=worker)
    scene.crash("a", "b", "c", worker="decode-2")
    assert scene.quarantine.reserved == "decode-1"
    scene.quarantine.move("decode-2")
    assert scene.quarantine.reserved == "decode-2"
