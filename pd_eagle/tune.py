"""Which plan takes most of a traffic at each level: the search, over anything that measures a rate.

Bracketing, not a grid: a rate that is kept is raised, one that is not ends the rise, and the gap is
halved until it is narrow. A trial counts at every level, so that levels share them. A plan is given
up when it cannot beat the best so far at any level. It starts no engine and knows no settings but
those that it is to name.

Every candidate is started by itself: SGLang 0.5.23 changes neither the chunk size nor mixed chunk
in a running engine (`set_internal_state` takes limits of micro-batches and of acceptance alone).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pd_eagle.errors import PdEagleError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

#: A bracket this narrow is enough: two runs of one rate differ by about 5 %.
NARROW = 1.08
#: A lead smaller than this is within what two runs of one rate differ by.
SURE = 1.05
#: From a kept rate to the next, where nothing is known above it.
_RISE = 1.6
#: A plan that does not keep the first rate is tried down to this part of it.
_LOWEST = 1 / 32


@dataclass(frozen=True, slots=True)
class Level:
    """What a good answer keeps, in seconds, and the share of answers that must be good."""

    first_s: float
    mean_gap_s: float
    longest_gap_s: float = math.inf
    quantile: float = 0.95

    def keeps(self, times: Times) -> bool:
        """Return whether an answer with these times is a good one."""
        return (
            times.first_s <= self.first_s
            and times.mean_gap_s <= self.mean_gap_s
            and times.longest_gap_s <= self.longest_gap_s
        )

    def allows(self, bad: int, asked: int) -> bool:
        """Return whether `bad` answers of `asked` are few enough: of few, one may be bad."""
        return bad <= math.ceil(round((1 - self.quantile) * asked, 6))

    def __str__(self) -> str:
        longest = f", longest ≤ {self.longest_gap_s * 1e3:g} ms"
        return (
            f"first token ≤ {self.first_s:g} s, mean gap ≤ {self.mean_gap_s * 1e3:g} ms"
            f"{longest if self.longest_gap_s < math.inf else ''}, {self.quantile:.0%} of answers"
        )


@dataclass(frozen=True, slots=True)
class Times:
    """One answer, in seconds: until its first token, and the gaps between those that followed.

    The mean is over tokens, the longest over what arrived together.
    """

    first_s: float
    mean_gap_s: float = 0.0
    longest_gap_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """One plan to try, and the settings that ask for it."""

    name: str
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Trial:
    """One rate at which requests were sent, and what became of them; `good` has one count a level.

    `cut_short` is a trial that was ended when no level could be kept any more.
    """

    rate_per_s: float
    asked: int
    good: tuple[int, ...]
    answers_per_s: float
    seconds: float = 0.0
    first_s: Mapping[str, float] = field(default_factory=dict)
    mean_gap_s: Mapping[str, float] = field(default_factory=dict)
    longest_gap_s: Mapping[str, float] = field(default_factory=dict)
    cut_short: bool = False
    errors: tuple[str, ...] = ()

    def kept(self, number: int, level: Level) -> bool:
        """Return whether level `number`, which is `level`, was kept."""
        return self.asked > 0 and level.allows(self.asked - self.good[number], self.asked)

    def share(self, number: int) -> float:
        """Return the share of answers that were good at level `number`."""
        return self.good[number] / self.asked if self.asked else 0.0


@dataclass(frozen=True, slots=True)
class Bracket:
    """One level: `kept_per_s` is the highest rate that kept it, `lost_per_s` the lowest that did
    not; `keeps_per_s` is where, between the two, the share of good answers falls below the level's.
    """

    kept_per_s: float = 0.0
    lost_per_s: float = math.inf
    keeps_per_s: float = 0.0

    @property
    def width(self) -> float:
        return self.lost_per_s / self.kept_per_s if self.kept_per_s else math.inf

    @property
    def upper(self) -> str:
        return "?" if self.lost_per_s == math.inf else f"{self.lost_per_s:.3g}"


def bracket(trials: Sequence[Trial], number: int, level: Level) -> Bracket:
    """Return what `trials` say of level `number`, which is `level`.

    Where they contradict, the limit is where fewest of them are on the wrong side, and of several
    such the highest: a disturbance of the machine makes answers bad, never good.
    """
    by_rate = {trial.rate_per_s: trial for trial in trials}
    ranked = [by_rate[rate] for rate in sorted(by_rate)]
    kept = [trial.kept(number, level) for trial in ranked]

    def on_the_wrong_side(limit: int) -> int:
        return kept[:limit].count(False) + kept[limit:].count(True)

    limit = min(reversed(range(len(ranked) + 1)), key=on_the_wrong_side)
    last = ranked[limit - 1] if limit else None
    first_lost = ranked[limit] if limit < len(ranked) else None
    return _between(last, first_lost, number, level.quantile)


def _between(last: Trial | None, lost: Trial | None, number: int, quantile: float) -> Bracket:
    if last is None:
        return Bracket(0.0, lost.rate_per_s if lost else math.inf)
    if lost is None:
        return Bracket(last.rate_per_s, math.inf, last.rate_per_s)
    above = max(last.share(number) - quantile, 0.0)
    below = quantile - lost.share(number)
    step = lost.rate_per_s / last.rate_per_s
    keeps = last.rate_per_s * step ** (above / (above + below))
    return Bracket(last.rate_per_s, lost.rate_per_s, keeps)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was found of one candidate: a bracket a level, and why no more was tried there."""

    candidate: Candidate
    brackets: tuple[Bracket, ...]
    ended: tuple[str, ...]
    trials: tuple[Trial, ...] = ()
    start_s: float | None = None

    def answers_per_s(self, number: int) -> float:
        """Return answers a second at the highest rate that was kept at level `number`."""
        kept = self.brackets[number].kept_per_s
        return max((t.answers_per_s for t in self.trials if t.rate_per_s == kept), default=0.0)


class OutOfTime(Exception):
    """The budget does not allow another trial."""


@dataclass(frozen=True, slots=True)
class _Aim:
    """One level of one candidate: where it begins and what another plan keeps already."""

    first_per_s: float
    to_beat_per_s: float

    @property
    def target(self) -> float:
        return self.to_beat_per_s * SURE

    def beaten(self, found: Bracket) -> bool:
        return self.to_beat_per_s > 0 and found.lost_per_s <= self.target

    def next_rate(self, found: Bracket) -> float | None:
        """Return the rate to try next; None where nothing is left to find out."""
        kept, lost = found.kept_per_s, found.lost_per_s
        if self.beaten(found) or found.width <= NARROW:
            return None
        if kept < self.target:
            return self.target
        if not kept:
            rate = min(lost / 2, self.first_per_s)
            return rate if rate >= self.first_per_s * _LOWEST else None
        if lost == math.inf:
            return max(kept * _RISE, self.first_per_s)
        return math.sqrt(kept * lost)

    def ended(self, found: Bracket, in_time: bool) -> str:
        if self.beaten(found):
            return f"does not keep {self.target:.3g}/s, and another does"
        if found.width <= NARROW:
            return "narrow enough"
        return "out of time" if not in_time else f"does not keep {found.lost_per_s:.3g}/s"


def find(
    candidate: Candidate,
    measure: Callable[[float], Trial],
    levels: Sequence[Level],
    *,
    first_per_s: float,
    to_beat: Sequence[float] = (),
) -> Outcome:
    """Find the highest rate of `candidate` that keeps each level; `measure` may raise `OutOfTime`.

    Starts at `first_per_s`, or just above what is `to_beat` at a level, in requests/s.
    """
    trials: list[Trial] = []
    aims = [_Aim(first_per_s, rate) for rate in to_beat or [0.0] * len(levels)]

    def brackets() -> tuple[Bracket, ...]:
        return tuple(bracket(trials, i, level) for i, level in enumerate(levels))

    in_time = True
    try:
        while rate := _widest(aims, brackets()):
            trials.append(measure(rate))
    except OutOfTime:
        in_time = False
    found = brackets()
    ended = tuple(aim.ended(one, in_time) for aim, one in zip(aims, found, strict=True))
    return Outcome(candidate, found, ended, tuple(trials))


def _widest(aims: Sequence[_Aim], found: Sequence[Bracket]) -> float | None:
    """Return the rate to try for the level of which least is known; of such the lowest rate."""
    open_ = [
        (-one.width, rate)
        for aim, one in zip(aims, found, strict=True)
        if (rate := aim.next_rate(one)) is not None
    ]
    return min(open_)[1] if open_ else None


@dataclass(frozen=True, slots=True)
class Share:
    """The time of one candidate: `ends_at` is the end of the search, and `others` come after it.

    `expected_start_s` is the longest start so far; `trial_s` is what a trial takes at least.
    """

    ends_at: float
    others: int
    expected_start_s: float
    trial_s: float

    def measures_until(self, now: float, start_s: float) -> float:
        """Return when a candidate is to end that is ready `now`, `start_s` after it was begun.

        Each has an equal part of the time beside the starts, and at least as long as its start,
        or two trials.
        """
        starts_s = self.others * max(start_s, self.expected_start_s)
        equal_s = (self.ends_at - now - starts_s) / (self.others + 1)
        return min(self.ends_at, now + max(equal_s, start_s, 2 * self.trial_s))


def search(
    candidates: Sequence[Candidate],
    try_out: Callable[[Candidate, Sequence[float], Share], Outcome],
    levels: int,
    *,
    clock: Callable[[], float],
    ends_at: float,
    trial_s: float = 0.0,
) -> tuple[list[Outcome], list[str]]:
    """Try the candidates in turn until time is up; return outcomes and the names of who was left.

    `try_out` gets a candidate, the rates to beat at each of the `levels`, and its share of the
    time; it raises `PdEagleError` where it cannot start. None is begun for which the longest start
    so far and a trial would not fit.
    """
    outcomes: list[Outcome] = []
    longest_s = 0.0
    left = list(candidates)
    while left and clock() + longest_s + trial_s <= ends_at:
        candidate, began = left.pop(0), clock()
        to_beat = [best(outcomes, number) for number in range(levels)]
        share = Share(ends_at, len(left), longest_s, trial_s)
        try:
            outcome = try_out(candidate, to_beat, share)
        except PdEagleError as error:
            reason = f"cannot start: {error}".splitlines()[0][:200]
            outcome = Outcome(candidate, (Bracket(),) * levels, (reason,) * levels)
        outcome = dataclasses.replace(outcome, start_s=outcome.start_s or clock() - began)
        longest_s = max(longest_s, outcome.start_s or 0.0)
        outcomes.append(outcome)
    return outcomes, [candidate.name for candidate in left]


def best(outcomes: Sequence[Outcome], number: int) -> float:
    """Return the highest rate that any of `outcomes` keeps at level `number`."""
    return max((one.brackets[number].keeps_per_s for one in outcomes), default=0.0)
