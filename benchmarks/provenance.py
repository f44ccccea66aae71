"""The provenance of every result (hardware, versions, commit), and where results are kept."""

from __future__ import annotations

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
#: Not tracked: logs of runs, and results of quick ones.
LOGS = ROOT / ".cache"


def provenance(*packages: str) -> dict[str, Any]:
    """Return hardware, versions, commit and command of this run."""
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
    """Return the commit that ran, with a `+` when the tree had uncommitted changes.

    BENCHMARKS_COMMIT overrides it for a tree that was copied without its history.
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
    """Write `result` to `benchmarks/results`, that of a quick run to `LOGS`."""
    folder = LOGS if arguments.quick else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    compact_json.write(path, result)
    tell(f"written: {path.relative_to(ROOT)}")


def conclude(name: str, result: dict[str, Any], arguments: argparse.Namespace) -> int:
    """Keep `result` with its provenance and print its summary; return the exit code.

    The code is 1 if `result["wrong"]`, the number of failures, is above 0.
    """
    keep(name, {"benchmark": name} | result | provenance("nixl"), arguments)
    sys.stdout.write(compact_json.as_text(result["summary"]))
    return 1 if result["wrong"] else 0


def log_to_file(name: str) -> None:
    """Send the package's log, including the engines' output, to a file in `LOGS`."""
    LOGS.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        filename=LOGS / f"{name}.log",
        filemode="w",
        level=logging.INFO,
        format="%(asctime)s %(levelname)-7s %(name)s %(message)s",
    )


def tell(line: str) -> None:
    """Print a line of progress to standard error."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
