"""The CPU platform's name, environment and entry points; imports neither SGLang nor torch.

It knows nothing of engines.
"""

from __future__ import annotations

import os

PLATFORM = "pd_eagle_cpu"
"""Name of the entry point in the group `sglang.srt.platforms`, and value of SGLANG_PLATFORM."""

CPU_ATTENTION_BACKEND = "pd_eagle_torch"
"""What `attention_backend` must be in the arguments of every engine on this platform."""

_THREADS = "PD_EAGLE_CPU_ENGINE_THREADS"


def threads() -> int:
    """Return the number of compute threads of an engine in this process."""
    return int(os.environ.get(_THREADS, "1"))


def activate() -> str | None:
    """Return the platform's class path if this process asked for it by name, else None.

    SGLang 0.5.23 (`srt/platforms/__init__.py`) activates *every* installed platform when
    SGLANG_PLATFORM is unset: without this check, installing this package would disable the GPU for
    every other SGLang process.
    """
    if os.environ.get("SGLANG_PLATFORM") != PLATFORM:
        return None
    return "pd_eagle.cpu.platform.CpuPlatform"


def install() -> None:
    """Apply the platform's overrides if this process asked for it; a general plugin of SGLang.

    Every SGLang process calls it once, after its imports and before it starts anything.
    """
    if activate() is not None:
        from sglang.srt.platforms import current_platform

        current_platform.apply_overrides()


def environment(*, offline: bool = False, threads: int = 1) -> dict[str, str]:
    """Return the variables that a process which will host a CPU engine must have from its start.

    They are read when SGLang, torch or Mooncake are imported, so they must be set before; a
    forked worker inherits them from the zygote. `offline` forbids every call to a model hub;
    `threads` is the number of compute threads.
    """
    variables = {
        "SGLANG_PLATFORM": PLATFORM,
        # The in-tree CPU path wants a CPU build of sgl_kernel that no registry has.
        "SGLANG_USE_CPU_ENGINE": "0",
        # On a GPU host `is_cuda()` would send SGLang down the CUDA paths.
        "CUDA_VISIBLE_DEVICES": "",
        # More threads than cores are the largest slowdown: SGLang's schedulers busy-poll.
        "OMP_NUM_THREADS": "1",
        # For the scheduler alone, once it is forked: libraries start threads of OMP_NUM_THREADS
        # while they are imported, and where threads run nothing may be forked.
        _THREADS: str(threads),
        "MOONCAKE_PROTOCOL": "tcp",
        # NIXL's UCX listens on every network device that it may use; both ends are on this host.
        "UCX_NET_DEVICES": "lo",
        # A failing scheduler waits for these dumps, up to a minute, before it ends.
        "SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "0",
        "SGLANG_PYSPY_DUMP_BEFORE_CRASH": "0",
    }
    return variables | ({"HF_HUB_OFFLINE": "1"} if offline else {})
