"""What `pd-eagle tune` found, as text and as JSON: at each level a winner, and how sure it is."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pd_eagle.tune import SURE, Level, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Report:
    """All outcomes, in the order in which they were tried."""

    traffic: str
    levels: tuple[Level, ...]
    outcomes: tuple[Outcome, ...]
    took_s: float
    budget_s: float
    untried: tuple[str, ...] = ()

    def ranked(self, number: int) -> list[Outcome]:
        """Return the outcomes, best first at level `number`."""

        def merit(one: Outcome) -> tuple[float, float]:
            return one.brackets[number].keeps_per_s, one.answers_per_s(number)

        return sorted(self.outcomes, key=merit, reverse=True)

    def winner(self, number: int) -> Outcome | None:
        """Return the best plan at level `number`, None if no plan kept it."""
        best = next(iter(self.ranked(number)), None)
        return best if best and best.brackets[number].kept_per_s > 0 else None

    @property
    def has_winner(self) -> bool:
        return any(self.winner(number) for number in range(len(self.levels)))

    def sureness(self, number: int) -> str:
        """Say how sure the choice at level `number` is."""
        best = self.winner(number)
        if best is None:
            return "no plan kept the level"
        keeps = best.brackets[number].keeps_per_s
        found = [(one.candidate.name, one.brackets[number]) for one in self.outcomes]
        doubts = [
            f"{name} keeps between {one.kept_per_s:.3g}/s and {one.upper}/s"
            for name, one in found
            if name != best.candidate.name
            and (one.lost_per_s > keeps * SURE or one.keeps_per_s * SURE > keeps)
            and not self._never_ran(name)
        ]
        never = [name for name, _ in found if self._never_ran(name)]
        if self.untried or never:
            doubts.append(f"not tried: {', '.join([*never, *self.untried])}")
        short = "one run a rate: differences under 5 % are noise"
        return "; ".join(["not sure", *doubts, short]) if doubts else f"sure; {short}"

    def _never_ran(self, name: str) -> bool:
        return any(one.candidate.name == name and not one.trials for one in self.outcomes)

    def as_json(self) -> dict[str, Any]:
        return {
            "traffic": self.traffic,
            "took_s": round(self.took_s, 3),
            "budget_s": self.budget_s,
            "levels": [self._level(number) for number in range(len(self.levels))],
            "plans": [_plan(one) for one in self.outcomes],
            "untried": list(self.untried),
        }

    def _level(self, number: int) -> dict[str, Any]:
        winner = self.winner(number)
        return _finite(dataclasses.asdict(self.levels[number])) | {
            "level": str(self.levels[number]),
            "winner": winner.candidate.name if winner else None,
            "export": dict(winner.candidate.settings) if winner else {},
            "sureness": self.sureness(number),
            "plans": {
                one.candidate.name: _finite(dataclasses.asdict(one.brackets[number]))
                | {"answers_per_s": one.answers_per_s(number), "ended": one.ended[number]}
                for one in self.ranked(number)
            },
        }

    def lines(self) -> Iterator[str]:
        """Yield, for each level, the table, the winner, what to export and how sure it is."""
        yield f"traffic: {self.traffic}"
        for number, level in enumerate(self.levels):
            yield ""
            yield f"level: {level}"
            yield from self._table(number)
            yield from self._verdict(number)
        yield ""
        yield f"{self.took_s:.0f} s of {self.budget_s:.0f} s"

    def _table(self, number: int) -> Iterator[str]:
        ranked = self.ranked(number)
        width = 2 + max([len("plan"), *(len(one.candidate.name) for one in ranked)])
        yield f"{'plan':<{width}}{'keeps/s':>9}{'between':>15}{'answers/s':>11}{'trials':>8}  ended"
        for one in ranked:
            found = one.brackets[number]
            between = f"{found.kept_per_s:.3g} – {found.upper}" if one.trials else "–"
            yield (
                f"{one.candidate.name:<{width}}{found.keeps_per_s:>9.3g}{between:>15}"
                f"{one.answers_per_s(number):>11.3g}{len(one.trials):>8}  {one.ended[number]}"
            )

    def _verdict(self, number: int) -> Iterator[str]:
        winner = self.winner(number)
        if winner is None:
            tried = any(outcome.trials for outcome in self.outcomes)
            yield (
                "no plan kept the level at any rate tried: wanted a looser level"
                if tried
                else "no plan was tried at any rate: the column on the right says why"
            )
            return
        yield f"winner: {winner.candidate.name}"
        for name, value in winner.candidate.settings.items():
            yield f"export {name}='{value}'"
        yield self.sureness(number)


def _plan(one: Outcome) -> dict[str, Any]:
    return {
        "name": one.candidate.name,
        "settings": dict(one.candidate.settings),
        "start_s": None if one.start_s is None else round(one.start_s, 3),
        "trials": [dataclasses.asdict(trial) for trial in one.trials],
    }


def _finite(found: dict[str, Any]) -> dict[str, Any]:
    return {name: None if value == math.inf else value for name, value in found.items()}
