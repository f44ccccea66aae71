"""What every result says of itself, and where it is kept."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import compact_json
from pd_eagle.plan import devices
from pd_eagle.version import VERSION

if TYPE_CHECKING:
    import argparse

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"
#: Not tracked: logs and other remains of runs.
LOGS = ROOT / ".cache"


def provenance(*packages: str) -> dict[str, Any]:
    """Return what a result must say of itself: hardware, versions, commit."""
    installed = {name: version(name) for name in ("sglang", "torch", *packages)}
    return {
        "hardware": {"cpus": os.cpu_count(), "cpu": _cpu(), "gpus": _gpus()},
        "versions": {"pd_eagle": VERSION, "python": platform.python_version()} | installed,
        "commit": _commit(),
        "command": ["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]],
    }


def _gpus() -> list[str]:
    found = devices.discover("auto", os.environ.get("CUDA_VISIBLE_DEVICES"))
    return [device.name for device in found.devices]


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    """Return the commit that ran, with a `+` when files of the tree were not committed.

    BENCHMARKS_COMMIT says it for a tree that was carried without its history.
    """
    if told := os.environ.get("BENCHMARKS_COMMIT"):
        return told

    def git(*arguments: str) -> str:
        run = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return run.stdout.strip()

    changed = git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return (git("rev-parse", "HEAD") or "unknown") + ("+" if changed else "")


def keep(name: str, result: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Write `result` to `benchmarks/results`, that of a quick run to where nothing is tracked."""
    folder = LOGS if arguments.quick else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    compact_json.write(path, result)
    tell(f"written: {path.relative_to(ROOT)}")


def conclude(name: str, result: dict[str, Any], arguments: argparse.Namespace) -> int:
    """Keep `result`, with where it comes from, and print its summary; return the exit code.

    That is 1 if `result["wrong"]`, how much was not as it must be, is above 0.
    """
    keep(name, {"benchmark": name} | result | provenance("nixl"), arguments)
    print(json.dumps(result["summary"], indent=1))
    return 1 if result["wrong"] else 0


def log_to_file(name: str) -> None:
    """Write what the package logs, the engines' output included, to a file of `LOGS`."""
    LOGS.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        filename=LOGS / f"{name}.log",
        filemode="w",
        level=logging.INFO,
        format="%(asctime)s %(levelname)-7s %(name)s %(message)s",
    )


def tell(line: str) -> None:
    """Show progress."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
