"""Imports the zygote's modules one by one and reports after which one CUDA is initialised.

Prints one line of JSON; starts no engine.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from typing import Any

from pd_eagle.workers.engine import SGLANG_MODULES
from pd_eagle.workers.fork_check import why_not_fork
from pd_eagle.workers.model_files import REGISTRY


def main() -> int:
    callers: list[str] = []
    steps = []
    for module in ("torch", *SGLANG_MODULES, REGISTRY):
        began = time.monotonic()
        importlib.import_module(module)
        if module == "torch":
            _watch(callers)
        steps.append(
            {
                "module": module,
                "seconds": round(time.monotonic() - began, 2),
                "threads": len(os.listdir("/proc/self/task")),
                "cuda_initialised": sys.modules["torch"].cuda.is_initialized(),
                "why_not_fork": why_not_fork(),
                "initialised_by": callers[-1:],
            }
        )
    print(json.dumps(steps))
    return 0


def _watch(callers: list[str]) -> None:
    """Record the call stack that makes torch initialise CUDA."""
    import torch

    original: Any = torch.cuda._lazy_init

    def lazy_init() -> None:
        if not torch.cuda.is_initialized():
            calls = traceback.extract_stack(limit=8)[:-1]
            callers.append(", ".join(f"{_inside(c.filename)}:{c.lineno} {c.name}" for c in calls))
        original()

    torch.cuda._lazy_init = lazy_init


def _inside(file: str) -> str:
    return file.rpartition("site-packages/")[2]


if __name__ == "__main__":
    sys.exit(main())
