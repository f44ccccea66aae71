"""Which plan takes most of a traffic at a level: the search, over anything that measures a rate.

Bracketing, not a grid: a rate that is kept is doubled, one that is not ends the doubling, and the
gap is halved until it is narrow. A plan that does not keep the best rate so far is given up after
one trial. It starts no engine and knows no settings but those that it is to name.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pd_eagle.errors import PdEagleError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

#: A bracket this narrow is enough: two runs of one rate differ by about 5 %.
_NARROW = 1.15
#: A lead smaller than this is within what two runs of one rate differ by.
_SURE = 1.05


@dataclass(frozen=True, slots=True)
class Level:
    """What a good answer keeps, in seconds, and the share of answers that must be good."""

    first_s: float
    mean_gap_s: float
    longest_gap_s: float = math.inf
    quantile: float = 0.95

    def keeps(self, first_s: float, gaps_s: Sequence[float]) -> bool:
        """Return whether an answer with these times is a good one."""
        mean = sum(gaps_s) / len(gaps_s) if gaps_s else 0.0
        longest = max(gaps_s, default=0.0)
        return first_s <= self.first_s and mean <= self.mean_gap_s and longest <= self.longest_gap_s


@dataclass(frozen=True, slots=True)
class Candidate:
    """One plan to try, and the settings that ask for it."""

    name: str
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Trial:
    """One rate at which requests were sent, and what became of them."""

    rate_per_s: float
    asked: int
    good: int
    answers_per_s: float
    first_p95_s: float
    mean_gap_p95_s: float
    errors: tuple[str, ...] = ()

    def kept(self, level: Level) -> bool:
        return self.asked > 0 and self.good >= level.quantile * self.asked


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was found of one candidate: it keeps `kept_per_s`, and not `lost_per_s`.

    `ended` says why no more was tried.
    """

    candidate: Candidate
    kept_per_s: float
    lost_per_s: float
    ended: str
    trials: tuple[Trial, ...] = ()
    start_s: float | None = None

    @property
    def answers_per_s(self) -> float:
        """Answers a second at the highest rate that was kept."""
        kept = [trial for trial in self.trials if trial.rate_per_s == self.kept_per_s]
        return kept[-1].answers_per_s if kept else 0.0


class OutOfTime(Exception):
    """The budget does not allow another trial."""


def bracket(
    candidate: Candidate,
    measure: Callable[[float], Trial],
    level: Level,
    *,
    first_per_s: float,
    to_beat_per_s: float = 0.0,
) -> Outcome:
    """Find the highest rate of `candidate` that keeps `level`; `measure` may raise `OutOfTime`.

    Starts at `first_per_s`, or just above `to_beat_per_s` where there is one.
    """
    trials: list[Trial] = []
    kept, lost, ended = 0.0, math.inf, "narrow enough"
    rate = max(first_per_s, to_beat_per_s * _SURE)
    try:
        while lost / max(kept, 1e-9) > _NARROW:
            trial = measure(rate)
            trials.append(trial)
            if trial.kept(level):
                kept = rate
            else:
                lost = rate
            if kept == 0.0 and to_beat_per_s and lost <= to_beat_per_s * _SURE:
                ended = f"does not keep {rate:.3g}/s, and another does"
                break
            if lost == math.inf:
                rate = kept * 2
            elif kept == 0.0:
                rate = lost / 2
                if rate < first_per_s / 16:
                    ended = f"does not keep {lost:.3g}/s"
                    break
            else:
                rate = (kept * lost) ** 0.5
    except OutOfTime:
        ended = "out of time"
    return Outcome(candidate, kept, lost, ended, tuple(trials))


@dataclass(frozen=True, slots=True)
class Report:
    """All outcomes, best first."""

    traffic: str
    level: Level
    outcomes: tuple[Outcome, ...]
    took_s: float
    untried: tuple[str, ...] = ()

    @property
    def winner(self) -> Outcome | None:
        best = self.outcomes[0] if self.outcomes else None
        return best if best is not None and best.kept_per_s > 0 else None

    @property
    def sureness(self) -> str:
        """Say how sure the choice is."""
        if self.winner is None:
            return "no plan kept the level"
        doubts = [
            f"{other.candidate.name} keeps between {other.kept_per_s:.3g} and {_upper(other)}"
            for other in self.outcomes[1:]
            if other.lost_per_s > self.winner.kept_per_s * _SURE
            or other.kept_per_s * _SURE > self.winner.kept_per_s
        ]
        if self.untried:
            doubts.append(f"not tried: {', '.join(self.untried)}")
        short = "one run a rate: differences under 5 % are noise"
        return "; ".join(["not sure", *doubts, short]) if doubts else f"sure; {short}"

    def as_json(self) -> dict[str, Any]:
        found = dataclasses.asdict(self)
        for outcome in found["outcomes"]:
            if outcome["lost_per_s"] == math.inf:
                outcome["lost_per_s"] = None
        if found["level"]["longest_gap_s"] == math.inf:
            found["level"]["longest_gap_s"] = None
        winner = self.winner
        found["winner"] = winner.candidate.name if winner else None
        found["export"] = dict(winner.candidate.settings) if winner else {}
        return found | {"sureness": self.sureness}

    def lines(self) -> Iterator[str]:
        """Yield the table, the winner, what to export and how sure it is."""
        yield f"traffic: {self.traffic}"
        yield f"{'plan':<34}{'keeps/s':>9}{'not/s':>9}{'answers/s':>11}{'trials':>8}  ended"
        for one in self.outcomes:
            yield (
                f"{one.candidate.name:<34}{one.kept_per_s:>9.3g}{_upper(one):>9}"
                f"{one.answers_per_s:>11.3g}{len(one.trials):>8}  {one.ended}"
            )
        yield ""
        if self.winner is None:
            tried = any(outcome.trials for outcome in self.outcomes)
            yield (
                "no plan kept the level at any rate tried: wanted a looser level"
                if tried
                else "no plan was tried at any rate: the column on the right says why"
            )
        else:
            yield f"winner: {self.winner.candidate.name}"
            for name, value in self.winner.candidate.settings.items():
                yield f"export {name}='{value}'"
        yield f"{self.sureness}; {self.took_s:.0f} s"


def _upper(outcome: Outcome) -> str:
    return "?" if outcome.lost_per_s == math.inf else f"{outcome.lost_per_s:.3g}"


def search(
    candidates: Sequence[Candidate],
    try_out: Callable[[Candidate, float, float], Outcome],
    *,
    clock: Callable[[], float],
    ends_at: float,
) -> tuple[list[Outcome], list[str]]:
    """Try the candidates in turn until time is up; return outcomes, best first, and who was left.

    `try_out` gets a candidate, the rate to beat and when to end, and raises `PdEagleError` where it
    cannot start. Each gets an equal share of what is left, and at least twice as long as the
    longest start so far, which is what a start is expected to take.
    """
    outcomes: list[Outcome] = []
    longest_s = 0.0
    left = list(candidates)
    while left:
        if clock() + longest_s > ends_at:
            break
        candidate, began = left.pop(0), clock()
        to_beat = max((one.kept_per_s for one in outcomes), default=0.0)
        try:
            share_s = max((ends_at - began) / (len(left) + 1), 2 * longest_s)
            outcome = try_out(candidate, to_beat, min(ends_at, began + share_s))
        except PdEagleError as error:
            reason = f"cannot start: {error}".splitlines()[0]
            outcome = Outcome(candidate, 0.0, math.inf, reason[:200])
        outcome = dataclasses.replace(outcome, start_s=outcome.start_s or clock() - began)
        longest_s = max(longest_s, outcome.start_s or 0.0)
        outcomes.append(outcome)
    outcomes.sort(key=lambda one: (-one.kept_per_s, -one.answers_per_s))
    return outcomes, [candidate.name for candidate in left]
