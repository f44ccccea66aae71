"""`server.py` for a benchmark in which several servers share GPUs, one of them measured at a time.

Normally a second server on a GPU is refused, because engines do not account for each other's
memory. Here each engine's KV pool is set by hand.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from pd_eagle import gpu_holds
from pd_eagle.serve import main


def _let_share(self: gpu_holds.GpuHolds, device: object) -> None:
    """Hold nothing."""


if __name__ == "__main__":
    gpu_holds.GpuHolds._take = _let_share  # type: ignore[method-assign]
    sys.exit(main(os.environ))
