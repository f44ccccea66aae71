"""Runs one stage in this process: python -m benchmarks.gpu.stage NAME --out FOLDER (see run.py)."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from pathlib import Path

from benchmarks.gpu.host import Host, found_gpus
from benchmarks.gpu.journal import Found, Journal, outcome
from benchmarks.provenance import provenance

#: In the order in which they run: name, time limit in seconds.
STAGES: dict[str, float] = {
    "plan": 90,
    "start": 500,
    "same": 420,
    "kill": 500,
    "eagle": 640,
    "load": 640,
    "transfer": 400,
    "mixed": 350,
    "restart": 600,
    "graphs": 400,
    "cold": 400,
    "kills": 700,
    "weights": 420,
    "tune": 1900,
}


def stage_file(name: str) -> str:
    return f"stage-{list(STAGES).index(name) + 1}-{name}"


def run(name: str, host: Host, only: str = "") -> None:
    """Run the stage `name` and write its JSON to the host's folder."""
    head: Found = {
        "benchmark": f"gpu {name}",
        "dry_run": host.dry_run,
        "device": host.device,
        "gpus": host.gpus,
    } | provenance("nixl", "triton", "transformers")
    options = ["--dry-run"] * host.dry_run + ["--parts", only] * bool(only)
    head["command"] = ["python", "-m", "benchmarks.gpu.run", *options, "--stages", name]
    journal = Journal(host.folder / f"{stage_file(name)}.json", head, host.gpus, only)
    importlib.import_module(f"benchmarks.gpu.stages.{name}").run(host, journal)
    journal.finish(outcome(journal.parts))


def host_of(arguments: argparse.Namespace) -> Host:
    gpus = arguments.gpus if arguments.dry_run else found_gpus()
    return Host(gpus, arguments.dry_run, arguments.out, arguments.seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=STAGES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--parts", default="")
    parser.add_argument("--seconds", type=float, default=180.0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(levelname)-7s %(name)s %(message)s",
    )
    run(arguments.name, host_of(arguments), arguments.parts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
