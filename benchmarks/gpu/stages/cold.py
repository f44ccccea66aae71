"""What a cold start costs, and a start with the folder of compiled kernels brought along.

Meant as the first stage on a fresh machine: else `first` is not cold, as its count of files tells.
Bringing along is played on one machine: the server's home is new, and holds a copy of that folder.
Files of the packages stay in the page cache.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.gpu.stages.start import server_settings, started
from benchmarks.provenance import ROOT
from pd_eagle.plan import kernel_cache

if TYPE_CHECKING:
    from benchmarks.gpu.host import Host
    from benchmarks.gpu.journal import Found, Journal

WARM_TIMEOUT_S = 300.0


def run(host: Host, journal: Journal) -> None:
    journal.part("pd-eagle warm", partial(_warm, host), gpus=2)
    journal.part("server, kernels brought along", partial(_brought_along, host), gpus=2)


def _warm(host: Host) -> Found:
    file = host.folder / "warm.json"
    done = subprocess.run(
        [sys.executable, "-m", "pd_eagle", "warm", "--json", str(file)],
        cwd=ROOT,
        env=os.environ | server_settings(host),
        capture_output=True,
        text=True,
        timeout=WARM_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-2000:]}")
    return {"said": done.stdout.splitlines(), "found": json.loads(file.read_text())}


def _brought_along(host: Host) -> Found:
    with tempfile.TemporaryDirectory(dir=host.folder) as home, ExitStack() as stack:
        brought = Path(home) / ".cache" / "sglang"
        if (kept := kernel_cache.folder(os.environ)).exists():
            shutil.copytree(kept, brought)
        own = {"HOME": home, kernel_cache.VARIABLE: str(brought)}
        files, size = kernel_cache.size(own)
        found = started(host, stack, "brought-along", server_settings(host) | own)
        compiled = kernel_cache.size(own)[0] - files
        return found | {"files": files, "mb": round(size / 1e6, 1), "files_more": compiled}
