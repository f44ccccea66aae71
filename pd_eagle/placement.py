"""Which devices serve which role, with which TP, and why: pure, with no look at the machine.

It knows nothing of SGLang's arguments, ports or processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pd_eagle.devices import Kind

Role = Literal["prefill", "decode", "unified"]


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """One engine: its name, its role, the GPUs it takes (none on a CPU) and its TP."""

    name: str
    role: Role
    devices: tuple[int, ...]
    tp: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Who serves what, and the reason in one sentence."""

    mode: Literal["pd", "unified"]
    reason: str
    kind: Kind
    workers: tuple[WorkerPlan, ...]
    notes: tuple[str, ...] = ()

    @property
    def prefill(self) -> tuple[WorkerPlan, ...]:
        return tuple(worker for worker in self.workers if worker.role == "prefill")

    @property
    def decode(self) -> tuple[WorkerPlan, ...]:
        return tuple(worker for worker in self.workers if worker.role == "decode")

    @property
    def serving(self) -> tuple[WorkerPlan, ...]:
        """The workers whose engines make the answer: decode, or the unified one."""
        return tuple(worker for worker in self.workers if worker.role != "prefill")
