"""The search for the best plan: over plans whose capacity at each level the test knows."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pd_eagle.errors import StartFailed
from pd_eagle.tune import (
    NARROW,
    Bracket,
    Candidate,
    Level,
    Outcome,
    OutOfTime,
    Share,
    Times,
    Trial,
    bracket,
    find,
    search,
)
from pd_eagle.tune_report import Report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LEVEL = Level(first_s=1.0, mean_gap_s=0.02)
TIGHT = Level(first_s=1.0, mean_gap_s=0.01)
PLAN = Candidate("PD 1+1", {"PD_MODE": "on"})


def of_capacity(*capacities: float, limit: int = 1000) -> Callable[[float], Trial]:
    """Play a plan that keeps every rate up to its capacity at each level, for `limit` trials."""
    left = limit

    def measure(rate: float) -> Trial:
        nonlocal left
        if not left:
            raise OutOfTime
        left -= 1
        good = tuple(100 if rate <= capacity else 50 for capacity in capacities)
        return Trial(rate, 100, good, min(rate, max(capacities)))

    return measure


@settings(max_examples=200)
@given(st.floats(0.05, 500), st.floats(0.5, 5))
def test_the_bracket_holds_the_capacity_and_is_narrow(capacity: float, first: float) -> None:
    found = find(PLAN, of_capacity(capacity), [LEVEL], first_per_s=first)
    (one,) = found.brackets
    assert len(found.trials) <= 25
    if capacity >= first / 16:
        assert one.kept_per_s <= capacity < one.lost_per_s
        assert one.width <= NARROW
        assert found.ended == ("narrow enough",)
        assert one.kept_per_s <= one.keeps_per_s < one.lost_per_s
    else:
        assert one.kept_per_s <= capacity


@settings(max_examples=200)
@given(st.lists(st.floats(0.5, 50), min_size=3, max_size=3), st.floats(0.5, 5))
def test_levels_share_trials_and_each_is_found(capacities: list[float], first: float) -> None:
    levels = [LEVEL] * 3
    found = find(PLAN, of_capacity(*capacities), levels, first_per_s=first)
    alone = [find(PLAN, of_capacity(one), [LEVEL], first_per_s=first) for one in capacities]
    for capacity, one in zip(capacities, found.brackets, strict=True):
        assert one.kept_per_s <= capacity < one.lost_per_s
        assert one.width <= NARROW
    assert len(found.trials) <= sum(len(one.trials) for one in alone)


def test_a_plan_that_cannot_win_is_given_up_after_one_trial() -> None:
    found = find(PLAN, of_capacity(5), [LEVEL], first_per_s=1, to_beat=[8])
    assert len(found.trials) == 1
    assert found.brackets == (Bracket(0.0, 8.4, 0.0),)
    assert found.ended == ("does not keep 8.4/s, and another does",)
    better = find(PLAN, of_capacity(20), [LEVEL], first_per_s=1, to_beat=[8])
    assert better.brackets[0].kept_per_s > 18


def test_a_plan_is_given_up_only_when_it_can_win_at_no_level() -> None:
    # It loses at the loose level and wins at the tight one: both must be found out.
    found = find(PLAN, of_capacity(9, 6), [LEVEL, TIGHT], first_per_s=1, to_beat=[12, 3])
    assert found.ended == ("does not keep 12.6/s, and another does", "narrow enough")
    assert found.brackets[1].kept_per_s <= 6 < found.brackets[1].lost_per_s
    # It can win at neither: the lowest rate to beat is asked first, and answers for both.
    found = find(PLAN, of_capacity(2, 2), [LEVEL, TIGHT], first_per_s=1, to_beat=[12, 3])
    assert [trial.rate_per_s for trial in found.trials] == pytest.approx([3.15])


def test_what_was_found_counts_when_time_is_up() -> None:
    found = find(PLAN, of_capacity(30, limit=2), [LEVEL], first_per_s=2)
    assert found.brackets == (Bracket(3.2, math.inf, 3.2),)
    assert found.ended == ("out of time",)
    assert found.answers_per_s(0) == 3.2


def test_between_two_rates_the_share_of_good_answers_decides() -> None:
    trials = [Trial(10, 100, (97,), 10), Trial(12, 100, (89,), 11)]
    one = bracket(trials, 0, LEVEL)
    assert (one.kept_per_s, one.lost_per_s) == (10, 12)
    assert one.keeps_per_s == pytest.approx(10 * 1.2**0.25)


def told(*points: tuple[float, int]) -> tuple[float, float]:
    """Return the bracket of trials with 100 requests, of which so many were good."""
    one = bracket([Trial(rate, 100, (good,), rate) for rate, good in points], 0, LEVEL)
    return one.kept_per_s, one.lost_per_s


def test_trials_that_contradict_are_outvoted() -> None:
    assert told((7, 99), (8, 99), (9, 99), (10, 80)) == (9, 10)
    assert told((7, 99), (8, 80), (9, 99), (10, 99), (11, 80)) == (10, 11)  # 8 was disturbed
    assert told((7, 80), (8, 80), (9, 80), (10, 99), (11, 80)) == (0, 7)  # 10 was luck
    assert told((7, 80), (8, 80), (9, 99), (10, 99), (11, 80)) == (10, 11)  # two against two


@pytest.mark.parametrize(
    ("asked", "bad", "kept"), [(100, 5, True), (100, 6, False), (12, 1, True), (12, 2, False)]
)
def test_of_few_answers_one_may_be_bad(asked: int, bad: int, kept: bool) -> None:
    assert Trial(1.0, asked, (asked - bad,), 1.0).kept(0, LEVEL) is kept
    assert not Trial(1.0, 0, (0,), 0.0).kept(0, LEVEL)


@pytest.mark.parametrize(
    ("times", "good"),
    [
        (Times(0.9, 0.02, 0.03), True),
        (Times(1.1, 0.01, 0.01), False),
        (Times(0.5, 0.03, 0.03), False),
        (Times(0.5, 0.01, 0.06), False),  # the longest
        (Times(0.5), True),
    ],
)
def test_a_good_answer(times: Times, good: bool) -> None:
    assert Level(1.0, 0.02, 0.05).keeps(times) is good


def test_a_level_says_what_it_keeps() -> None:
    assert str(LEVEL) == "first token ≤ 1 s, mean gap ≤ 20 ms, 95% of answers"
    assert "longest ≤ 50 ms" in str(Level(1.0, 0.02, 0.05))


shares: list[float] = []  # seconds that each was given


def outcomes(
    capacities: dict[str, float | tuple[float, ...]],
    *,
    start_s: float,
    ends_at: float,
    levels: Sequence[Level] = (LEVEL,),
) -> tuple[list[Outcome], list[str], list[str]]:
    """Search plans of these capacities, each of which takes `start_s` and a second a trial."""
    now, tried = 0.0, []
    shares.clear()

    def try_out(candidate: Candidate, to_beat: Sequence[float], share: Share) -> Outcome:
        nonlocal now
        tried.append(candidate.name)
        now += start_s
        shares.append(share.measures_until(now, start_s) - now)
        capacity = capacities[candidate.name]
        if not capacity:
            raise StartFailed("no room\nand more")
        each = capacity if isinstance(capacity, tuple) else (capacity,)
        return find(candidate, of_capacity(*each), levels, first_per_s=1, to_beat=to_beat)

    plans = [Candidate(name, {"X": name}) for name in capacities]
    found, untried = search(plans, try_out, len(levels), clock=lambda: now, ends_at=ends_at)
    return found, untried, tried


def report_of(found: list[Outcome], *levels: Level, untried: tuple[str, ...] = ()) -> Report:
    return Report("300/100", levels or (LEVEL,), tuple(found), 60.0, 90.0, untried)


def test_the_best_plan_wins_and_one_that_cannot_start_says_why() -> None:
    found, untried, _ = outcomes({"a": 3, "b": 12, "c": 0, "d": 5}, start_s=1, ends_at=100)
    assert untried == []
    refused = next(one for one in found if one.candidate.name == "c")
    assert refused.ended == ("cannot start: no room",)
    report = report_of(found)
    winner = report.winner(0)
    assert winner is not None
    assert winner.candidate.name == "b"
    text = "\n".join(report.lines())
    assert "winner: b\nexport X='b'" in text
    assert "not tried: c" in text
    told = json.loads(json.dumps(report.as_json()))
    (level,) = told["levels"]
    assert (level["winner"], level["export"]) == ("b", {"X": "b"})
    assert [len(plan["trials"]) for plan in told["plans"]][2] == 0


def test_each_level_has_its_own_winner() -> None:
    plans: dict[str, float | tuple[float, ...]] = {
        "replicas": (12.0, 2.5),
        "PD": (6.0, 6.0),
        "slow": (1.0, 1.0),
    }
    found, *_ = outcomes(plans, start_s=1, ends_at=100, levels=(LEVEL, TIGHT))
    report = report_of(found, LEVEL, TIGHT)
    names = [one.candidate.name for number in (0, 1) if (one := report.winner(number))]
    assert names == ["replicas", "PD"]
    assert len(found[2].trials) == 1
    assert [level["winner"] for level in report.as_json()["levels"]] == names
    assert "\n".join(report.lines()).count("winner: ") == 2


def test_the_budget_ends_the_search_before_another_start_would_pass_it() -> None:
    found, untried, tried = outcomes({"a": 3, "b": 12, "c": 20}, start_s=40, ends_at=90)
    assert tried == ["a", "b"]
    assert untried == ["c"]
    report = report_of(found, untried=tuple(untried))
    assert report.sureness(0).startswith("not sure; not tried: c")


def test_no_plan_takes_the_time_of_those_that_come_after_it() -> None:
    outcomes({"a": 3, "b": 2, "c": 1, "d": 1}, start_s=10, ends_at=100)
    # Nobody uses time here but for starts.
    assert shares == [(90 - 30) / 4, (80 - 20) / 3, (70 - 10) / 2, 60]
    outcomes({"a": 3, "b": 2, "c": 1}, start_s=40, ends_at=90)
    assert shares == [40, 10]  # as long as a start, within the budget


def test_it_is_sure_only_where_brackets_do_not_meet() -> None:
    def one(name: str, kept: float, lost: float) -> Outcome:
        trials = (Trial(kept, 1, (1,), kept),)
        return Outcome(
            Candidate(name, {}), (Bracket(kept, lost, kept),), ("narrow enough",), trials
        )

    assert report_of([one("a", 10, 11), one("b", 5, 5.5)]).sureness(0).startswith("sure; one run")
    close = report_of([one("a", 10, 11), one("b", 9, 12)])
    assert close.sureness(0).startswith("not sure; b keeps between 9/s and 12/s")
    none = report_of([Outcome(PLAN, (Bracket(),), ("out of time",))])
    assert "no plan was tried at any rate: the column on the right says why" in none.lines()
    assert none.winner(0) is None
    assert not none.has_winner
    assert none.sureness(0) == "no plan kept the level"
