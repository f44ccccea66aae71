"""What a cold start costs, and a start with the folder of compiled kernels brought along.

Meant as the first stage on a fresh machine: else `first` is not cold, as its count of files tells.
Bringing along is played on one machine: the server's home is new, and holds a copy of that folder.
Files of the packages stay in the page cache.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.gpu.module_process import module_said
from benchmarks.gpu.stages.start import server_settings, started
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
    settings = server_settings(host)
    said = module_said(
        "pd_eagle", "warm", "--json", str(file), variables=settings, timeout_s=WARM_TIMEOUT_S
    )
    return {"said": said.splitlines(), "found": json.loads(file.read_text())}


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
