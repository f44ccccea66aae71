"""Splits of the GPUs between prefill and decode: the documented ones, and what rules one out.

Pure arithmetic over devices and shapes. It does not know which split is chosen, or why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pd_eagle.errors import PlanRefused

if TYPE_CHECKING:
    from pd_eagle.plan.config import Settings
    from pd_eagle.plan.devices import Inventory
    from pd_eagle.plan.memory import Footprint


@dataclass(frozen=True, slots=True)
class Split:
    """How many workers of which TP each role gets."""

    prefill_replicas: int
    prefill_tp: int
    decode_replicas: int
    decode_tp: int

    @property
    def gpus(self) -> int:
        return self.prefill_replicas * self.prefill_tp + self.decode_replicas * self.decode_tp

    def __str__(self) -> str:
        return (
            f"prefill {self.prefill_replicas} × TP{self.prefill_tp},"
            f" decode {self.decode_replicas} × TP{self.decode_tp}"
        )


# The splits that the documentation promises for that many H100.
DOCUMENTED = {2: Split(1, 1, 1, 1), 4: Split(1, 1, 1, 3), 8: Split(1, 2, 2, 3)}


def equal_split(gpus: int, tp: int) -> Split:
    """Keep the documented share, a quarter of the GPUs for prefill, as far as `tp` allows."""
    prefill = max(1, gpus // 4 // tp)
    return Split(prefill, tp, (gpus - prefill * tp) // tp, tp)


def completed(settings: Settings, gpus: int, inventory: Inventory, footprint: Footprint) -> Split:
    """Fill in what is not set: equal TPs, a quarter of the GPUs for prefill, decode the rest."""
    decode_tp = settings.decode_tp or settings.prefill_tp
    decode_tp = decode_tp or smallest_tp(range(1, max(2, gpus // 2 + 1)), inventory, footprint)
    prefill_tp = settings.prefill_tp or decode_tp
    prefill = settings.prefill_replicas
    if prefill is None:
        left = gpus - (settings.decode_replicas or 1) * decode_tp
        prefill = max(1, min(gpus // 4, left) // prefill_tp)
    decode = settings.decode_replicas
    if decode is None:
        decode = max(0, gpus - prefill * prefill_tp) // decode_tp
    return Split(prefill, prefill_tp, decode, decode_tp)


def smallest_tp(candidates: range, inventory: Inventory, footprint: Footprint) -> int:
    """Return the smallest TP without an obstacle; refuse with that of the largest that splits."""
    problem = ""
    for tp in candidates:
        found = obstacle(tp, inventory, footprint)
        if not found:
            return tp
        if not footprint.why_not_split(tp):
            problem = found
    raise PlanRefused(f"{footprint.target.name} does not fit: {problem}")


def obstacle(tp: int, inventory: Inventory, footprint: Footprint) -> str | None:
    """Return why no engine of `tp` can run on these devices, or None."""
    smallest = min(gpu.total_memory_bytes for gpu in inventory.devices)
    return footprint.why_not_split(tp) or footprint.why_not_in(smallest, tp)


def split_obstacle(split: Split, inventory: Inventory, footprint: Footprint) -> str | None:
    """Return why `split` cannot run on these devices, or None."""
    for tp in (split.prefill_tp, split.decode_tp):
        if problem := obstacle(tp, inventory, footprint):
            return problem
    return footprint.why_not_hand_over(split.prefill_tp, split.decode_tp)
