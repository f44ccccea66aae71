"""Compares the plan that `pd-eagle tune` chose with the best one of a ladder of rates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pd_eagle.tune import Level, Trial, bracket

if TYPE_CHECKING:
    from benchmarks.gpu.journal import Found

WITHIN = 0.95


def verdict(
    measured: dict[str, list[Trial]], number: int, level: Level, chosen: str | None
) -> Found:
    """Compare `chosen` with the best plan at one level.

    `keeps_per_s` is the rate at which the share of good answers falls below the level's, between
    two steps of the ladder; `goodput_per_s` is the most good answers/s at any step.
    """
    plans: Found = {}
    for name, trials in measured.items():
        one = bracket(trials, number, level)
        plans[name] = {
            "keeps_per_s": round(one.keeps_per_s, 3),
            "kept_per_s": one.kept_per_s,
            "lost_per_s": None if one.lost_per_s == math.inf else one.lost_per_s,
            "goodput_per_s": round(max(t.rate_per_s * t.share(number) for t in trials), 3),
        }
    said: Found = {"level": str(level), "chosen": chosen, "plans": plans}
    for what in ("keeps_per_s", "goodput_per_s"):
        best = max(plans, key=lambda name: float(plans[name][what]))
        of_best = plans[best][what]
        own = plans.get(chosen or "", {}).get(what, 0.0)
        said[f"best_by_{what.removesuffix('_per_s')}"] = best
        said[f"{what.removesuffix('_per_s')}_ratio"] = round(own / of_best, 4) if of_best else None
    ratio = said["keeps_ratio"]
    said["within_5_percent"] = None if ratio is None else ratio >= WITHIN  # None: nobody kept it
    return said
