"""Answers CUDA queries of SGLang's imports from NVML, so that the process can still be forked.

Some of its modules query the number and kind of GPUs while they are imported, which initialises
CUDA, and a process with CUDA initialised cannot be forked. Until `dismiss`, the torch functions
they call answer from what NVML found in another process. It does not know who forks.
"""

from __future__ import annotations

import functools
import json
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pd_eagle.overrides import Override, apply

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pd_eagle.plan.devices import Device

_GPUS = "PD_EAGLE_CUDA_ANSWERS"
# Suffix of the architecture's name, by the major compute capability; others are not supported.
_ARCHITECTURES = {8: "", 9: "a", 10: "a"}


def why_not(devices: Sequence[Device]) -> str | None:
    """Return why nothing can be answered for these GPUs, or None."""
    if len({(device.name, device.capability) for device in devices}) != 1:
        return "the visible GPUs differ"
    capability = devices[0].capability
    if capability is None or capability[0] not in _ARCHITECTURES:
        known = ", ".join(f"{major}.x" for major in _ARCHITECTURES)
        said = "unknown" if capability is None else "{}.{}".format(*capability)
        return f"the GPUs' compute capability is {said}: wanted {known}"
    return None


def environment(devices: Sequence[Device], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with which SGLang can be imported and CUDA stays untouched.

    `devices` are those that CUDA shows, all alike; what `environ` says of architectures stays.
    """
    major, minor = devices[0].capability or (0, 0)
    suffix = _ARCHITECTURES[major]
    gpus = [[d.name, *(d.capability or ()), d.total_memory_bytes] for d in devices]
    return {
        # Read by FlashInfer and by CUTLASS's DSL, which otherwise ask the driver.
        "FLASHINFER_CUDA_ARCH_LIST": environ.get(
            "FLASHINFER_CUDA_ARCH_LIST", f"{major}.{minor}{suffix}"
        ),
        "CUTE_DSL_ARCH": environ.get("CUTE_DSL_ARCH", f"sm_{major}{minor}{suffix}"),
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        # OpenMP and OpenBLAS start threads while they are imported.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        # SGLang would run spawned processes under numactl; forked ones bind themselves.
        "SGLANG_NUMA_BIND_V2": "0",
        _GPUS: json.dumps(gpus),
    }


class _Answers:
    """The answers, and whether they are in use; a forked child inherits both."""

    def __init__(self) -> None:
        self.gpus: list[tuple[str, int, int, int]] = []
        self.active = False

    def gpu(self, device: Any = None) -> tuple[str, int, int, int]:
        return self.gpus[_index(device)]


_answers = _Answers()


def _index(device: Any) -> int:
    if device is None:
        return 0
    if isinstance(device, str):
        return int(device.partition(":")[2] or 0)
    return int(getattr(device, "index", device) or 0)


def _properties(device: Any = None) -> SimpleNamespace:
    name, major, minor, memory = _answers.gpu(device)
    return SimpleNamespace(name=name, major=major, minor=minor, total_memory=memory)


def _no_nvml(device: Any) -> int:
    raise RuntimeError("NVML is not asked in a process that is going to be forked")


def _answered(name: str, shape: str, answer: Callable[..., Any]) -> Override:
    def new(original: Callable[..., Any]) -> Callable[..., Any]:
        # Modules may have imported the function by name, so it forwards to the original.
        @functools.wraps(original)
        def ask(*args: Any, **kwargs: Any) -> Any:
            return (answer if _answers.active else original)(*args, **kwargs)

        return ask

    return Override(
        target=f"torch.cuda:{name}",
        shape=shape,
        because="SGLang's imports ask it, and CUDA must not be initialised before a fork",
        new=new,
    )


OVERRIDES = (
    _answered("is_available", "", lambda: bool(_answers.gpus)),
    _answered("device_count", "", lambda: len(_answers.gpus)),
    _answered("current_device", "", lambda: 0),
    _answered("get_device_name", "device", lambda device=None: _answers.gpu(device)[0]),
    _answered("get_device_capability", "device", lambda device=None: _answers.gpu(device)[1:3]),
    _answered("get_device_properties", "device", _properties),
    # SGLang's `get_device_sm` then asks `get_device_capability` instead of NVML (0.5.23).
    _answered("_get_nvml_device_index", "device", _no_nvml),
)


def install() -> None:
    """Answer from now on, if this process was given answers; before SGLang is imported.

    Raises `StartFailed` where torch is not what it was.
    """
    if _answers.active or (said := os.environ.get(_GPUS)) is None:
        return
    apply(OVERRIDES)
    _answers.gpus = [tuple(gpu) for gpu in json.loads(said)]
    _answers.active = True


def dismiss() -> None:
    """Let CUDA itself answer from now on: an engine starts, or nothing more is forked."""
    _answers.active = False
