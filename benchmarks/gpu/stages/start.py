"""Time to ready by phase, over each transfer; and whether engines may be forked on this device."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from benchmarks.asking import ask
from benchmarks.gpu.host import DUMMY, Host, prompts
from benchmarks.provenance import ROOT
from pd_eagle import cpu, pd_engine

if TYPE_CHECKING:
    from benchmarks.gpu.journal import Found, Journal

# What engines and package say between start and readiness.
_PHASE = re.compile(
    r"Load weight (?:begin|end)|KV Cache is allocated|[Cc]apture .*(?:begin|end)|Memory pool end"
    r"|workers up|^ready|carried|spawned, not forked|Found \d+ HCAs|protocol:|NVLINK|NVLink",
)
# These keep SGLang's imports off the driver: torch's availability test, FlashInfer's.
OFF_THE_DRIVER = {
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    "FLASHINFER_CUDA_ARCH_LIST": "9.0a",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def run(host: Host, journal: Journal) -> None:
    own = cpu.environment() if host.dry_run else {}
    journal.part("zygote's imports", lambda: _imports(own), gpus=0)
    off = own | OFF_THE_DRIVER
    journal.part("zygote's imports, off the driver", lambda: _imports(off), gpus=0)
    model = {"model_path": str(host.big_model()), "engine_args": DUMMY}
    journal.part("unified", lambda: _start(host, model | {"pd_mode": "off"}))
    journal.part("auto", lambda: _start(host, model))
    for transfer in ("nixl", "mooncake"):
        settings = model | {"pd_mode": "on", "disagg_transfer_backend": transfer}
        journal.part(f"PD {transfer}", partial(_start, host, settings), gpus=2)
    journal.part("forked", lambda: _forked(host, model | {"pd_mode": "off"}))


def _start(host: Host, settings: dict[str, Any]) -> Found:
    phases = _Phases()
    logger = logging.getLogger()
    logger.addHandler(phases)
    try:
        with host.start(**settings) as engine:
            ready_s = phases.elapsed()
            began = time.monotonic()
            answers = ask(engine, prompts(2), 2, 8)
            health = engine.health()
            return {
                "ready_s": round(ready_s, 2),
                "first_answers_s": round(time.monotonic() - began, 3),
                "tokens": answers.tokens,
                "transfer": health["transfer_backend"],
                "plan": health["plan"]["reason"],
                "workers": [worker["name"] for worker in health["plan"]["workers"]],
                "phases": phases.seen,
            }
    finally:
        logger.removeHandler(phases)


class _Phases(logging.Handler):
    """Keeps the lines that mark a phase, with their seconds since the start."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.seen: list[list[Any]] = []
        self._began = time.monotonic()

    def elapsed(self) -> float:
        return time.monotonic() - self._began

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if _PHASE.search(said) and "server_args" not in said and len(self.seen) < 80:
            self.seen.append([round(self.elapsed(), 2), record.name, said[:240]])


def _forked(host: Host, settings: dict[str, Any]) -> Found:
    """Start with engines forked from the zygote, which the package does on the CPU alone."""
    forking = patch.object(pd_engine, "check_forked_engines", return_value=True)
    with forking, patch.dict(os.environ, OFF_THE_DRIVER):
        found = _start(host, settings)
    refused = [said for _, _, said in found["phases"] if "spawned, not forked" in said]
    return found | {"forked": not refused, "refused": refused}


def _imports(variables: dict[str, str]) -> Found:
    """Import what the zygote does, in a process of its own; say after which CUDA was touched."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.imports"],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-2000:]}")
    return {"steps": json.loads(done.stdout.splitlines()[-1]), "variables": variables}
