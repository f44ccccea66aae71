"""Runs a module in a Python of its own, for what must not happen in the stage's process."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from benchmarks.provenance import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping


def module_said(
    module: str, *arguments: str, variables: Mapping[str, str], timeout_s: float
) -> str:
    """Return what `python -m module` printed; raises RuntimeError with its last errors."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=os.environ | dict(variables),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout
