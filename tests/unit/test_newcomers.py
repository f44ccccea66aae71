"""Requests without an answer enter a few at a time after a conviction; one crash then is enough."""

from __future__ import annotations

import asyncio
from asyncio import ensure_future
from typing import TYPE_CHECKING

import pytest

from pd_eagle.requests import newcomers
from pd_eagle.requests.newcomers import Newcomers
from pd_eagle.requests.quarantine import Quarantine
from pd_eagle.requests.suspicion import Suspicion

if TYPE_CHECKING:
    from asyncio import Task

WORDS = "IndexError: in {}"
RIDS = ("0" * 32, "a" * 32)


def watchful(*, tokens: int = 0, alone: bool = True) -> Newcomers:
    """Return `Newcomers` that have seen a culprit with so many tokens convicted."""
    seen = Newcomers()
    seen.convicted(Suspicion(tokens=tokens), WORDS.format(RIDS[0]), alone=alone)
    return seen


async def turns(new: Newcomers, count: int) -> list[tuple[Suspicion, Task[None]]]:
    entering = [Suspicion() for _ in range(count)]
    found = [(one, ensure_future(new.enter(one))) for one in entering]
    await asyncio.sleep(0.01)
    return found


async def entered(found: list[tuple[Suspicion, Task[None]]]) -> int:
    await asyncio.sleep(0.01)
    done = [turn.done() for _, turn in found]
    assert done == sorted(done, reverse=True), "in the order in which they came"
    return sum(done)


async def test_without_a_conviction_everybody_enters() -> None:
    found = await turns(Newcomers(), 3)
    assert all(turn.done() for _, turn in found)


async def test_after_one_they_enter_one_at_a_time_and_more_with_progress() -> None:
    new = watchful()
    found = await turns(new, 8)
    assert await entered(found) == 1
    now_in = []
    for one, _ in found[:5]:
        one.tokens = 2
        new.leave(one)
        now_in.append(await entered(found))
    assert now_in == [2, 3, 4, 6, 7]
    for _, turn in found:
        turn.cancel()


async def test_one_that_ends_without_an_answer_gives_its_place_back() -> None:
    new = watchful()
    (first, _), (_, second) = await turns(new, 2)
    new.leave(first)
    await second


async def test_one_that_gives_up_waiting_holds_no_place() -> None:
    new = watchful()
    (first, _), (_, second), (_, third) = await turns(new, 3)
    second.cancel()
    new.leave(first)
    await third


async def test_who_has_an_answer_or_a_trial_does_not_wait() -> None:
    new = watchful()
    await turns(new, 1)
    await asyncio.wait_for(new.enter(Suspicion(tokens=2)), 1)
    await asyncio.wait_for(new.enter(Suspicion(on_trial=True)), 1)


async def test_a_long_prompt_holds_its_place_for_a_while_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(newcomers, "_HOLDS_S", 0.01)
    found = await turns(watchful(), 2)
    await asyncio.wait_for(found[1][1], 1)


async def test_after_a_while_everybody_enters_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newcomers, "_WATCHFUL_S", 0.0)
    found = await turns(watchful(), 3)
    assert all(turn.done() for _, turn in found)


def test_words_speak_against_those_without_an_answer() -> None:
    new, old = Suspicion(tokens=1), Suspicion(tokens=2)
    assert watchful().likely([new, old], WORDS.format(RIDS[1])) == {new}


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (Newcomers(), WORDS.format(RIDS[0])),
        (watchful(), "another error"),
        (watchful(alone=False), WORDS.format(RIDS[0])),
        (watchful(tokens=2), WORDS.format(RIDS[0])),
    ],
    ids=["no culprit", "other words", "not alone", "crashed late"],
)
def test_without_a_proof_they_speak_against_nobody(seen: Newcomers, words: str) -> None:
    assert not seen.likely([Suspicion()], words)


def test_a_culprit_that_crashed_late_takes_the_proof_back() -> None:
    seen = watchful()
    seen.convicted(Suspicion(tokens=9), WORDS.format(RIDS[1]), alone=True)
    assert not seen.likely([Suspicion()], WORDS.format(RIDS[0]))


def test_a_proof_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newcomers, "_PROOF_S", -1.0)
    assert not watchful().likely([Suspicion()], WORDS.format(RIDS[0]))


class Scene:
    """A quarantine that has convicted one request."""

    def __init__(self) -> None:
        self.blamed: list[str] = []
        self.quarantine = Quarantine(self.blamed.append, lambda: None)
        culprit = Suspicion()
        self.quarantine.newcomers.convicted(culprit, "IndexError", alone=True)

    def crash(self, **suspects: Suspicion) -> bool:
        for rid, one in suspects.items():
            self.quarantine.begin(rid, one)
        counts = self.quarantine.crashed("decode-0", suspects, "IndexError")
        for rid, one in suspects.items():
            self.quarantine.end_attempt(rid, one)
        return counts


async def test_the_only_newcomer_in_a_crash_is_the_culprit_and_the_others_go_on() -> None:
    scene, new = Scene(), Suspicion()
    others = [Suspicion(tokens=9), Suspicion(tokens=4)]
    assert not scene.crash(new=new, a=others[0], b=others[1])
    assert new.convicted_by == "decode-0: IndexError"
    assert not any(one.must_be_alone or one.cases for one in others)
    assert [one.crashes for one in others] == [1, 1]
    assert not scene.quarantine.reserved
    for one in (new, *others):
        scene.quarantine.close(one)
    assert not scene.blamed


async def test_of_several_newcomers_each_has_a_trial_at_once() -> None:
    scene, old = Scene(), Suspicion(tokens=9)
    suspects = [Suspicion(), Suspicion(tokens=1)]
    scene.crash(a=suspects[0], b=suspects[1], old=old)
    assert [one.must_be_alone for one in suspects] == [True, True]
    assert not old.must_be_alone
    await scene.quarantine.take_trial(suspects[1])
    scene.crash(a2=suspects[1])
    assert suspects[1].convicted_by


async def test_first_tokens_of_several_attempts_are_not_an_answer() -> None:
    """A prefill engine makes one at every attempt, whatever decode dies of."""
    scene, culprit = Scene(), Suspicion()
    for attempt in "ab":
        scene.quarantine.begin(attempt, culprit)
        culprit.tokens += 1
        scene.quarantine.end_attempt(attempt, culprit)
    innocent = Suspicion()
    scene.crash(c=culprit, new=innocent)
    assert not innocent.convicted_by
    assert innocent.must_be_alone
    assert culprit.must_be_alone


async def test_what_ended_just_now_may_be_the_culprit_too() -> None:
    scene, ended, new = Scene(), Suspicion(), Suspicion()
    scene.quarantine.begin("e", ended)
    scene.quarantine.end_attempt("e", ended)
    for rid, one in (("new", new), ("old", Suspicion(tokens=9))):
        scene.quarantine.begin(rid, one)
    scene.quarantine.crashed("decode-0", ["e", "new", "old"], "IndexError")
    assert not new.convicted_by


async def test_with_no_newcomer_in_it_the_rule_is_the_ordinary_one() -> None:
    scene = Scene()
    old = [Suspicion(tokens=9), Suspicion(tokens=4)]
    scene.crash(a=old[0], b=old[1])
    assert [len(one.cases) for one in old] == [1, 1]
    assert not any(one.must_be_alone or one.convicted_by for one in old)


async def test_progress_and_the_end_give_a_newcomers_place_back() -> None:
    scene = Scene()
    waiting = [Suspicion() for _ in range(4)]
    turns = [ensure_future(scene.quarantine.newcomers.enter(one)) for one in waiting]
    await turns[0]
    waiting[0].tokens = 2
    scene.quarantine.progressed(waiting[0])
    await asyncio.wait_for(turns[1], 1)
    scene.quarantine.begin("b", waiting[1])
    scene.quarantine.end_attempt("b", waiting[1])
    await asyncio.wait_for(turns[2], 1)
    scene.quarantine.close(waiting[2])  # it found no pair
    await asyncio.wait_for(turns[3], 1)
