"""Which role is the bottleneck: the one with queued requests while the other has none.

It judges samples, and names the setting to try; it takes no samples itself and changes nothing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pd_eagle.messages import Role
    from pd_eagle.plan.placement import Plan

#: Samples that are looked at, one a second, and how many of them must say the same.
SAMPLES, ENOUGH = 30, 24


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """`role` limits throughput; `advice` is the setting to try."""

    role: Role
    advice: str

    def __str__(self) -> str:
        other = "decode" if self.role == "prefill" else "prefill"
        return (
            f"{self.role} is the bottleneck: requests waited for it, and none for {other}, in"
            f" {ENOUGH} of the last {SAMPLES} seconds; try {self.advice}"
        )


class Watch:
    """The last samples of one plan, and what they say. Unified plans have no such bottleneck."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._samples: deque[tuple[bool, bool]] = deque(maxlen=SAMPLES)
        self.found: Bottleneck | None = None

    def note(self, prefill_queued: Sequence[int], decode_queued: Sequence[int]) -> bool:
        """Record how many requests wait for each engine of a role; return whether `found` is new.

        A role is short when some wait for every one of its engines: else it is only round robin.
        """
        if self._plan.mode != "pd":
            return False
        self._samples.append((_all_wait(prefill_queued), _all_wait(decode_queued)))
        before, self.found = self.found, self._judge()
        return before != self.found

    def _judge(self) -> Bottleneck | None:
        prefill = sum(prefill and not decode for prefill, decode in self._samples)
        decode = sum(decode and not prefill for prefill, decode in self._samples)
        if prefill >= ENOUGH:
            return Bottleneck("prefill", self._advice(1))
        if decode >= ENOUGH:
            return Bottleneck("decode", self._advice(-1))
        return None

    def _advice(self, more_prefill: int) -> str:
        prefill, decode = len(self._plan.prefill), len(self._plan.decode)
        tps = {worker.tp for worker in self._plan.workers}
        if len(tps) == 1 and min(prefill + more_prefill, decode - more_prefill) >= 1:
            return (
                f"PREFILL_REPLICAS={prefill + more_prefill} DECODE_REPLICAS={decode - more_prefill}"
            )
        gpus = sum(worker.tp for worker in self._plan.workers)
        tp = min(tps)
        unified = f"PD_MODE=off UNIFIED_REPLICAS={gpus // tp}"
        return f"{unified} TP_SIZE={tp}" if tp > 1 else unified


def _all_wait(queued: Sequence[int]) -> bool:
    return bool(queued) and min(queued) > 0
