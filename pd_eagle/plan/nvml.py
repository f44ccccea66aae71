"""Reads this machine's GPUs from NVML, as JSON; does not know what they are used for.

The only module that imports pynvml. It runs by its path in a process of its own: `nvmlInit` starts
a thread that never ends, and a driver that hangs blocks the calling process.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class Nvml(Protocol):
    """The part of pynvml that is used here; a scripted one stands in for it in tests."""

    NVMLError: type[Exception]

    def nvmlInit(self) -> Any: ...
    def nvmlShutdown(self) -> Any: ...
    def nvmlDeviceGetCount(self) -> int: ...
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...
    def nvmlDeviceGetName(self, handle: Any) -> str | bytes: ...
    def nvmlDeviceGetUUID(self, handle: Any) -> str | bytes: ...
    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any: ...
    def nvmlDeviceGetMigMode(self, handle: Any) -> Sequence[int]: ...
    def nvmlDeviceGetCudaComputeCapability(self, handle: Any) -> Sequence[int]: ...


@dataclass(frozen=True, slots=True)
class PhysicalGpu:
    """One GPU as NVML sees it, visible to CUDA or not."""

    name: str
    uuid: str
    memory_bytes: int
    mig: bool
    capability: tuple[int, int]


def read(nvml: Nvml) -> list[PhysicalGpu] | str:
    """Return all GPUs of the machine, or why none can be seen."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return f"no NVIDIA driver answers (NVML: {error})"
    try:
        gpus = [_read(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError as error:
        return f"the NVIDIA driver fails (NVML: {error})"
    finally:
        nvml.nvmlShutdown()
    return gpus or "NVML finds no GPU"


def _read(nvml: Nvml, index: int) -> PhysicalGpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return PhysicalGpu(
        name=_text(nvml.nvmlDeviceGetName(handle)),
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        mig=_mig(nvml, handle),
        capability=(major, minor),
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _mig(nvml: Nvml, handle: Any) -> bool:
    try:
        return bool(nvml.nvmlDeviceGetMigMode(handle)[0])
    except nvml.NVMLError:
        return False  # "Not Supported": the card has no MIG


def dump(found: list[PhysicalGpu] | str) -> str:
    """Return `found` as a line of JSON for `load`."""
    gpus = found if isinstance(found, str) else [dataclasses.asdict(gpu) for gpu in found]
    return json.dumps(gpus)


def load(line: str) -> list[PhysicalGpu] | str:
    """Return what `dump` was given."""
    found: list[dict[str, Any]] | str = json.loads(line)
    if isinstance(found, str):
        return found
    return [PhysicalGpu(**gpu | {"capability": tuple(gpu["capability"])}) for gpu in found]


def main() -> None:
    try:
        import pynvml
    except ImportError:
        found: list[PhysicalGpu] | str = "nvidia-ml-py is not installed"
    else:
        found = read(pynvml)
    sys.stdout.write(dump(found))


if __name__ == "__main__":
    main()
