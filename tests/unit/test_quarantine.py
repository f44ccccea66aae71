"""Who is suspected of a crash, who must be alone, who is the culprit, and which worker it counts
against.
"""

from __future__ import annotations

import asyncio
from asyncio import ensure_future

import pytest

from pd_eagle.requests import culprits, quarantine, suspicion
from pd_eagle.requests.culprits import Culprits
from pd_eagle.requests.quarantine import Quarantine
from pd_eagle.requests.suspicion import Suspicion


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "_GATHERING_S", 0.001)


class Scene:
    """A quarantine, whom it blames, and how often it has changed."""

    def __init__(self) -> None:
        self.blamed: list[str] = []
        self.changes = 0
        self.quarantine = Quarantine(self.blamed.append, self._change)

    def _change(self) -> None:
        self.changes += 1

    def enter(self, rid: str, suspicion: Suspicion | None = None, tokens: int = 0) -> Suspicion:
        suspicion = suspicion or Suspicion(tokens=tokens)
        self.quarantine.begin(rid, suspicion)
        return suspicion

    def crash(self, *rids: str, worker: str = "decode-0") -> bool:
        return self.quarantine.crashed(worker, rids, "IndexError")

    def end(self, *rids: str) -> None:
        for rid in rids:
            self.quarantine.end_attempt(rid, self.quarantine._open[rid])

    async def trial(self, rid: str, suspicion: Suspicion) -> None:
        """Wait for the trial and begin it."""
        await self.quarantine.take_trial(suspicion)
        assert suspicion.on_trial
        self.enter(rid, suspicion)

    def advances(self, suspicion: Suspicion, tokens: int) -> None:
        suspicion.tokens += tokens
        self.quarantine.progressed(suspicion)


def test_a_crash_with_nothing_of_ours_in_it_counts_at_once() -> None:
    scene = Scene()
    assert scene.crash()
    assert scene.crash("a-probe-of-the-canary")
    assert not scene.quarantine.reserved


def test_suspects_of_one_crash_go_on_as_after_any_death() -> None:
    scene = Scene()
    suspects = [scene.enter(rid) for rid in "ab"]
    assert not scene.crash("a", "b")
    assert [suspect.must_be_alone for suspect in suspects] == [False, False]
    assert not scene.quarantine.reserved


async def test_a_second_crash_sets_them_apart_one_at_a_time() -> None:
    scene = Scene()
    a, b = scene.enter("a"), scene.enter("b", tokens=5)
    scene.crash("a", "b")
    late = scene.enter("late")
    scene.crash("a", "b", "late", worker="decode-1")
    scene.end("a", "b", "late")
    assert [one.must_be_alone for one in (a, b, late)] == [True, True, False]
    assert scene.quarantine.reserved == {"decode-1"}
    others = ensure_future(scene.quarantine.take_trial(b))
    await scene.trial("a2", a)
    await asyncio.sleep(0.01)
    assert not others.done()
    scene.advances(a, 1)
    await asyncio.sleep(0.01)
    assert not others.done()
    scene.advances(a, 1)
    await others
    assert (a.on_trial, b.on_trial) == (False, True)
    assert not a.must_be_alone
    assert scene.quarantine.reserved == {"decode-1"}
    scene.enter("b2", b)
    scene.advances(b, 2)
    assert not scene.quarantine.reserved


async def test_the_likeliest_goes_first() -> None:
    scene = Scene()
    old, new, newest = scene.enter("o", tokens=90), scene.enter("n"), scene.enter("m")
    for _ in range(2):
        scene.crash("o", "n", "m")
    scene.end("o", "n", "m")
    turns = [ensure_future(scene.quarantine.take_trial(one)) for one in (old, new, newest)]
    await turns[2]
    assert [one.on_trial for one in (old, new, newest)] == [False, False, True]
    scene.enter("m2", newest)
    scene.advances(newest, 2)
    await turns[1]
    assert not old.on_trial
    turns[0].cancel()


async def test_what_crashes_alone_is_the_culprit_and_explains_the_crashes() -> None:
    scene = Scene()
    poison, streaming, fresh = scene.enter("p"), scene.enter("s", tokens=9), scene.enter("f")
    for _ in range(2):
        scene.crash("p", "s", "f")
    scene.end("p", "s", "f")
    waiting = ensure_future(scene.quarantine.take_trial(streaming))
    later = ensure_future(scene.quarantine.take_trial(fresh))
    poison.number = fresh.number + 1  # else the order is theirs
    await scene.trial("p2", poison)
    assert not scene.crash("p2")
    assert poison.convicted_by == "decode-0: IndexError"
    scene.end("p2")
    await waiting
    assert not streaming.on_trial  # it needs none: who has an answer was none of the culprits
    assert not streaming.must_be_alone
    await later
    assert fresh.on_trial  # there may be a second one
    scene.enter("f2", fresh)
    scene.advances(fresh, 2)
    for one in (poison, streaming, fresh):
        scene.quarantine.close(one)
    assert scene.blamed == []
    assert not scene.quarantine.reserved


async def test_a_second_culprit_needs_one_crash_more() -> None:
    scene = Scene()
    first, second = scene.enter("1"), scene.enter("2")
    for _ in range(2):
        scene.crash("1", "2")
    scene.end("1", "2")
    turn = ensure_future(scene.quarantine.take_trial(first))
    await scene.trial("2b", second)
    scene.crash("2b")
    scene.end("2b")
    await turn
    scene.enter("1b", first)
    scene.crash("1b")
    assert first.convicted_by
    assert second.convicted_by


async def test_once_alone_may_be_chance() -> None:
    scene = Scene()
    lone = scene.enter("a")
    assert not scene.crash("a")
    assert lone.convicted_by is None
    assert lone.must_be_alone  # its next attempt costs nobody anything
    scene.crash("a")
    assert lone.convicted_by == "decode-0: IndexError"


async def test_alone_is_who_has_no_company_that_has_just_left() -> None:
    scene = Scene()
    honest = scene.enter("h")
    for number in range(3):
        leaver = scene.enter(f"leaver-{number}")
        scene.end(f"leaver-{number}")
        scene.quarantine.close(leaver)
        scene.crash("h", f"leaver-{number}")
    assert honest.convicted_by is None
    assert honest.must_be_alone


async def test_a_crash_in_company_of_the_cleared_convicts_nobody_but_is_first_next_time() -> None:
    scene = Scene()
    honest, poison = scene.enter("h"), scene.enter("p", tokens=50)
    for _ in range(2):
        scene.crash("h", "p")
    scene.end("h", "p")
    await scene.trial("h2", honest)
    scene.advances(honest, 2)
    assert scene.quarantine.have_passed(["h2"])
    await scene.trial("p2", poison)
    scene.crash("h2", "p2")
    scene.end("h2", "p2")
    assert poison.convicted_by is None
    turn = ensure_future(scene.quarantine.take_trial(honest))
    await scene.trial("p3", poison)
    scene.crash("p3")
    scene.end("p3")
    assert poison.convicted_by
    await asyncio.wait_for(turn, 1)
    scene.quarantine.close(honest)
    assert scene.blamed == []


def test_who_has_not_passed_a_trial_is_no_company_for_one() -> None:
    scene = Scene()
    scene.enter("new")
    assert scene.quarantine.have_passed([])
    assert not scene.quarantine.have_passed(["new"])
    assert not scene.quarantine.have_passed(["gone"])


async def test_each_further_crash_makes_the_trial_longer() -> None:
    scene = Scene()
    a = scene.enter("a")
    scene.enter("b")
    tokens, seconds = [], []
    for _ in range(4):
        scene.crash("a", "b")
        scene.end("a")
        tokens.append(a._cleared_at - a.tokens)
        seconds.append(a.trial_s)
        scene.enter("a", a)
    assert tokens == [2, 2, 16, 128]
    assert seconds == [60.0, 60.0, 120.0, 240.0]


async def test_a_trial_ends_by_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspicion, "_TRIAL_S", 0.02)
    scene = Scene()
    silent, other = scene.enter("s"), scene.enter("o", tokens=9)
    for _ in range(2):
        scene.crash("s", "o")
    scene.end("s", "o")
    turn = ensure_future(scene.quarantine.take_trial(other))
    await scene.trial("s2", silent)  # whose client does not read
    await asyncio.wait_for(turn, 1)
    assert not silent.must_be_alone


def test_a_crash_without_a_culprit_counts_when_the_last_suspect_is_over() -> None:
    scene = Scene()
    a, b = scene.enter("a"), scene.enter("b")
    assert not scene.crash("a", "b", worker="prefill-0")
    scene.end("a")
    scene.quarantine.close(a)
    assert scene.blamed == []
    scene.end("b")
    scene.quarantine.close(b)
    assert scene.blamed == ["prefill-0"]


async def test_one_that_leaves_while_it_waits_holds_nobody_up() -> None:
    scene = Scene()
    a, b = scene.enter("a"), scene.enter("b", tokens=9)
    for _ in range(2):
        scene.crash("a", "b")
    scene.end("a", "b")
    waiting = ensure_future(scene.quarantine.take_trial(b))
    await scene.quarantine.take_trial(a)
    waiting.cancel()
    await asyncio.wait({waiting})
    scene.quarantine.close(b)  # its client is gone, before its trial
    scene.quarantine.close(a)  # its time was up before its worker was empty
    assert not scene.quarantine.reserved
    assert not scene.quarantine._waiting


async def test_one_that_leaves_in_the_turn_of_its_trial_gives_it_back() -> None:
    scene = Scene()
    a, b = scene.enter("a"), scene.enter("b", tokens=9)
    for _ in range(2):
        scene.crash("a", "b")
    scene.end("a", "b")
    first = ensure_future(scene.quarantine.take_trial(a))
    second = ensure_future(scene.quarantine.take_trial(b))
    await asyncio.sleep(0)
    scene.quarantine._call_next()
    first.cancel()
    await asyncio.wait_for(second, 1)
    assert (a.on_trial, b.on_trial) == (False, True)


async def test_every_place_of_a_suspect_is_kept_for_them() -> None:
    scene = Scene()
    for rid in "abcd":
        scene.enter(rid)
    for _ in range(2):
        scene.crash("a", "b", worker="prefill-0")
        scene.crash("c", "d", worker="decode-0")
    assert scene.quarantine.reserved == {"prefill-0", "decode-0"}
    changes = scene.changes
    a = scene.quarantine._open["a"]
    scene.quarantine.move(a, "prefill-1")
    assert scene.quarantine.reserved == {"prefill-0", "prefill-1", "decode-0"}
    assert scene.changes == changes + 1


def test_culprits_are_remembered_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(culprits, "_REMEMBERED", 3)
    remembered = Culprits()
    assert not remembered
    for number in range(5):
        remembered.remember(b"%d" % number, "IndexError")
    found = [remembered.words_about(b"%d" % number) for number in range(5)]
    assert found == [None, None, "IndexError", "IndexError", "IndexError"]
    monkeypatch.setattr(culprits, "_REMEMBERED_S", -1.0)
    assert remembered.words_about(b"4") is None
    assert not remembered


async def test_nothing_is_kept_for_one_that_does_not_appear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quarantine, "_APPEARING_S", 0.02)
    scene = Scene()
    a, b = scene.enter("a"), scene.enter("b")
    for _ in range(2):
        scene.crash("a", "b")
    scene.end("a", "b")
    assert scene.quarantine.reserved
    await asyncio.sleep(0.05)
    assert not scene.quarantine.reserved
    await scene.trial("a2", a)  # its client reads again
    assert scene.quarantine.reserved == {"decode-0"}
    await asyncio.sleep(0.05)
    assert scene.quarantine.reserved == {"decode-0"}
    assert b.must_be_alone


async def test_one_that_waits_too_long_for_an_empty_worker_goes_on_in_company(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quarantine, "_GIVES_WAY_S", 0.02)
    scene = Scene()
    a = scene.enter("a")
    scene.enter("b")
    for _ in range(2):
        scene.crash("a", "b")
    scene.end("a")
    await scene.quarantine.take_trial(a)
    assert not scene.quarantine.gives_way(a)
    await asyncio.sleep(0.05)
    assert scene.quarantine.gives_way(a)
    assert not a.on_trial
    assert not a.must_be_alone


async def test_a_prefill_engine_is_done_with_a_request_at_its_first_token() -> None:
    scene = Scene()
    a = scene.enter("a", tokens=7)
    scene.enter("b")
    for _ in range(4):
        scene.quarantine.crashed("prefill-0", ["a", "b"], "IndexError", in_prefill=True)
    scene.end("a")
    await scene.trial("a2", a)
    scene.advances(a, 1)
    assert not a.on_trial
    assert not a.must_be_alone


async def test_a_trial_lasts_as_long_as_the_attempt_that_crashed() -> None:
    scene = Scene()
    a = scene.enter("a", tokens=7)
    scene.enter("b")
    scene.crash("a", "b")
    a.tokens += 2
    scene.crash("a", "b")
    a.tokens += 1  # it had made three tokens more when the engine crashed, one was on its way
    scene.end("a")
    assert a._cleared_at == 7 + 3 + 3 + 2
    await scene.trial("a2", a)
    scene.advances(a, 200)
    scene.enter("a3", a)
    a.tokens += 200
    scene.crash("a3", "b")
    scene.end("a3")
    assert a._cleared_at == 7 + 3 + 200 + 200 + 8 + 16
