"""The GPUs of this machine, by NVML, or the CPU.

The only module that imports pynvml. It knows nothing of models or plans.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["cuda", "cpu"]


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU as CUDA numbers it: `index` counts the visible ones, from 0."""

    index: int
    name: str
    uuid: str
    total_memory_bytes: int

    @property
    def is_h100(self) -> bool:
        return "H100" in self.name


@dataclass(frozen=True, slots=True)
class Inventory:
    """What there is to serve on, and how that was found."""

    kind: Kind
    devices: tuple[Device, ...]
    reason: str
    notes: tuple[str, ...] = ()
