"""The GPUs of this machine, by NVML, or the CPU.

NVML is asked in a short-lived process: it never enters this one, which may be forked. No CUDA
context is started. It knows nothing of models or plans.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pd_eagle.errors import PlanRefused, SettingsError
from pd_eagle.plan import nvml as nvml_reader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pd_eagle.plan.nvml import PhysicalGpu

Kind = Literal["cuda", "cpu"]

# Total memory in MiB as nvidia-smi shows it on such a card; under the vendor's round figure.
_MEMORY_MIB = {
    "B300": 275040,
    "B200": 183359,
    "H200": 143771,
    "H100": 81559,  # SXM and PCIe with 80 GB
    "H100-NVL": 95830,
    "A100": 81920,  # SXM with 80 GB
    "A100-40GB": 40960,
    "L40S": 46068,
    "A40": 46068,
    "L4": 23034,
    "A10": 23028,
    "T4": 15360,
}
_GPU_COUNT = re.compile(r"(?:(\d+)x)?([A-Za-z0-9-]+)", re.IGNORECASE)
_H100 = re.compile(r"\bH100\b")
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_NVML_LIBRARY = "libnvidia-ml.so.1"
#: Without its persistence mode the driver initialises each GPU first: seconds.
_NVML_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU as CUDA numbers it: `index` counts the visible ones, from 0.

    NVML numbers by PCI bus; CUDA does so with CUDA_DEVICE_ORDER=PCI_BUS_ID, and for equal GPUs.
    `capability` is the compute capability, None where nobody asked the GPU.
    """

    index: int
    name: str
    uuid: str
    total_memory_bytes: int
    capability: tuple[int, int] | None = None

    @property
    def is_h100(self) -> bool:
        return _H100.search(self.name) is not None


@dataclass(frozen=True, slots=True)
class Inventory:
    """The devices to serve on, and how they were found."""

    kind: Kind
    devices: tuple[Device, ...]
    reason: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.devices:
            return "the CPU"
        names = [device.name for device in self.devices]
        return ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names))


def discover(device_setting: str, environ_cuda_visible: str | None, nvml: Any = None) -> Inventory:
    """Return what the setting PD_DEVICE means here, given the value of CUDA_VISIBLE_DEVICES.

    `nvml` stands in for pynvml, and is asked in this process. Raises PlanRefused when GPUs were
    asked for and there are none, or when those that are visible are slices of a GPU (MIG).
    """
    if device_setting == "cpu":
        return Inventory("cpu", (), "PD_DEVICE=cpu")
    found = nvml_reader.read(nvml) if nvml is not None else _ask_nvml()
    gpus = found if isinstance(found, str) else _visible(found, environ_cuda_visible)
    if isinstance(gpus, str):
        if device_setting == "cuda":
            raise PlanRefused(
                f"PD_DEVICE='cuda': {gpus}; wanted a visible NVIDIA GPU, or PD_DEVICE=cpu"
            )
        return Inventory("cpu", (), gpus)
    devices = tuple(
        Device(index, gpu.name, gpu.uuid, gpu.memory_bytes, gpu.capability)
        for index, gpu in enumerate(gpus)
    )
    return Inventory("cuda", devices, _reason(devices, found), tuple(_notes(devices)))


def _reason(devices: tuple[Device, ...], found: Any) -> str:
    hidden = len(found) - len(devices)
    visible = f"{len(devices)} GPU{'s' if len(devices) > 1 else ''} by NVML"
    return f"{visible}, {hidden} more hidden by {_VISIBLE}" if hidden else visible


def _notes(devices: tuple[Device, ...]) -> Iterator[str]:
    if len({device.name for device in devices}) > 1:
        yield (
            "the visible GPUs differ: set CUDA_DEVICE_ORDER=PCI_BUS_ID, or CUDA may number them"
            " in another order than this plan"
        )


def _ask_nvml() -> list[PhysicalGpu] | str:
    """Return the GPUs that NVML finds, read in a process of its own, or why there are none."""
    try:
        ctypes.CDLL(_NVML_LIBRARY)  # loading it starts nothing
    except OSError:
        return f"no NVIDIA driver is installed ({_NVML_LIBRARY} cannot be loaded)"
    command = [sys.executable, "-P", nvml_reader.__file__]  # -P: its folder holds no libraries
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_NVML_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"the NVIDIA driver does not answer NVML within {_NVML_TIMEOUT_S:g} s"
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return f"NVML cannot be asked: {last}"
    return nvml_reader.load(done.stdout)


def _visible(gpus: list[PhysicalGpu], visible: str | None) -> list[PhysicalGpu] | str:
    """Return the GPUs that CUDA will show, in its order, or why it will show none.

    CUDA takes indexes and (abbreviated) UUIDs, and stops at the first that it does not know: CUDA
    programming guide, "CUDA Environment Variables".
    """
    chosen = gpus if visible is None else list(_named(gpus, visible))
    if not chosen:
        return f"{_VISIBLE}={visible!r} hides every GPU"
    for gpu in chosen:
        if gpu.mig:
            raise PlanRefused(
                f"{gpu.name} ({gpu.uuid}) is split by MIG, and slices cannot be planned for:"
                f" wanted whole GPUs in {_VISIBLE}, or MIG off (nvidia-smi -mig 0)"
            )
        if chosen.count(gpu) > 1:
            raise PlanRefused(f"{_VISIBLE}={visible!r} names {gpu.uuid} twice")
    return chosen


def _named(gpus: list[PhysicalGpu], visible: str) -> Iterator[PhysicalGpu]:
    for entry in visible.split(","):
        name = entry.strip()
        if name.startswith("MIG-"):
            raise PlanRefused(
                f"{_VISIBLE}={visible!r} names the MIG slice {name}: wanted whole GPUs, by index"
                " or by UUID (GPU-…)"
            )
        found = _one(gpus, name)
        if found is None:
            return
        yield found


def _one(gpus: list[PhysicalGpu], name: str) -> PhysicalGpu | None:
    if name.isdecimal():
        return gpus[int(name)] if int(name) < len(gpus) else None
    if not name.startswith("GPU-"):
        return None
    matching = [gpu for gpu in gpus if gpu.uuid.startswith(name)]
    return matching[0] if len(matching) == 1 else None


def parse_gpus(text: str) -> Inventory:
    """Return the inventory that `text` describes, e.g. "8xH100", "2xH100,2xA100" or "0".

    Raises SettingsError that names --gpus.
    """
    wanted = f"wanted e.g. 8xH100, with one of {', '.join(_MEMORY_MIB)}; or cpu"
    if text.strip().lower() in ("cpu", "0"):
        return Inventory("cpu", (), f"--gpus {text}")
    devices: list[Device] = []
    for entry in text.split(","):
        match = _GPU_COUNT.fullmatch(entry.strip())
        memory = _MEMORY_MIB.get(match[2].upper()) if match else None
        if match is None or memory is None or match[1] == "0":
            raise SettingsError(f"--gpus {text!r}: {wanted}")
        for _ in range(int(match[1] or 1)):
            name = f"NVIDIA {match[2].upper().replace('-', ' ')}"
            devices.append(Device(len(devices), name, f"GPU-{len(devices)}", memory * 2**20))
    return Inventory("cuda", tuple(devices), f"--gpus {text}", tuple(_notes(tuple(devices))))
