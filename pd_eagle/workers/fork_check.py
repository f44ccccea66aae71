"""Whether this process may be forked now, and why not; does not know what the fork is for.

Only the forking thread exists in the child: a lock that another thread held stays locked for ever.
A CUDA context does not survive a fork either.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Names of threads that hold no lock that a child needs, or whose library handles forks: NVML's
#: event thread, which `nvmlShutdown` leaves behind, and jemalloc's, which restarts in the child.
_HARMLESS = re.compile(r"cuda\d+|jemalloc_bg_thd")
_GPU = re.compile(r"/dev/nvidia\d+")
_UNIFIED_MEMORY = "/dev/nvidia-uvm"


def why_not_fork(process: Path = Path("/proc/self")) -> str | None:
    """Return why this process must not be forked now, or None if it may."""
    return _threads(process) or why_cuda_is_not_untouched(process)


def why_cuda_is_not_untouched(process: Path = Path("/proc/self")) -> str | None:
    """Return the evidence that CUDA was initialised in this process, or None.

    `/dev/nvidia-uvm` is opened by `cuInit` alone; NVML opens each GPU once, CUDA several times.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "CUDA is initialised in it"
    opened = Counter(_open_files(process))
    several = [name for name, times in opened.items() if _GPU.fullmatch(name) and times > 1]
    if signs := [_UNIFIED_MEMORY] * (_UNIFIED_MEMORY in opened) + several:
        return f"the CUDA driver is initialised in it: it holds {', '.join(sorted(signs))}"
    return None


def _threads(process: Path) -> str | None:
    _, *others = sorted(int(task.name) for task in (process / "task").iterdir())
    names = [_name(process / "task" / str(task)) for task in others]
    harmful = sorted(name for name in names if name and not _HARMLESS.fullmatch(name))
    if not harmful:
        return None
    counted = [f"{n} × {name}" if n > 1 else name for name, n in Counter(harmful).items()]
    return f"{len(harmful) + 1} threads run in it: its own, {', '.join(counted)}"


def _name(task: Path) -> str | None:
    try:
        return (task / "comm").read_text().strip()
    except OSError:  # it has ended
        return None


def _open_files(process: Path) -> Iterator[str]:
    for link in (process / "fd").iterdir():
        try:
            yield os.readlink(link)
        except OSError:  # closed since: that of this very listing
            continue
