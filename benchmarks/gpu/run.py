"""Runs all stages, each in its own process with a time limit; a failure does not stop the next.

    python -m benchmarks.gpu.run --out FOLDER                # everything, on the GPUs that are here
    python -m benchmarks.gpu.run --out FOLDER --stages 1,2
    python -m benchmarks.gpu.run --out FOLDER --dry-run      # the same code, small, on the CPU

Leaves stage-N-NAME.json and .log for each stage, and all of them in results.tar.gz. Changes no GPU
setting and passes the environment on unchanged.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from benchmarks.compact_json import write
from benchmarks.gpu.stage import STAGES, stage_file
from benchmarks.provenance import ROOT, tell


def chosen(text: str) -> list[str]:
    """Return the stages named in `text`, by number or name, in their fixed order."""
    names = list(STAGES)
    wanted = {names[int(word) - 1] if word.isdecimal() else word for word in text.split(",")}
    if unknown := wanted - set(names):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: wanted of {', '.join(names)}")
    return [name for name in names if name in wanted]


def run_stage(name: str, out: Path, limit_s: float, options: list[str]) -> dict[str, Any]:
    """Run one stage; return its JSON, with the error if it failed or timed out."""
    path, log = (out / f"{stage_file(name)}{suffix}" for suffix in (".json", ".log"))
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu.stage", name, "--out", str(out), *options]
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        error = _why_it_ended(process, limit_s)
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"stage": name}
    found |= {"limit_s": limit_s, "process_s": round(time.monotonic() - began, 1)}
    if error or not found.get("finished"):
        found |= {"finished": False, "error": error or "it ended early", "log": _end_of(log)}
    write(path, found)
    return found


def _why_it_ended(process: subprocess.Popen[bytes], limit_s: float) -> str | None:
    """Wait for `process`; return its error, or None if it exited with code 0 in time."""
    try:
        code = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        # Workers lead process groups of their own; they end at EOF from this process.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"over its limit of {limit_s:g} s"
    return f"exit code {code}" if code else None


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]


def bundle(out: Path) -> None:
    """Write all results and logs so far into one archive."""
    with tarfile.open(out / "results.tar.gz", "w:gz") as archive:
        for file in sorted((*out.glob("stage-*.json"), *out.glob("stage-*.log"))):
            archive.add(file, file.name)


def line(name: str, found: dict[str, Any]) -> str:
    said = found.get("summary") or f"NOT FINISHED: {found['error']}"
    return f"{stage_file(name)}: {found['process_s']} s: {said}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stages", type=chosen, default=list(STAGES))
    parser.add_argument("--limit-s", type=float, help="one limit for every stage")
    parser.add_argument("--parts", default="", help="a regular expression: only these parts")
    parser.add_argument("--seconds", type=float, default=180.0, help="length of each part of kills")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--gpus", type=int, default=2, help="how many a dry run simulates")
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    options = ["--gpus", str(arguments.gpus), "--parts", arguments.parts]
    options += ["--seconds", f"{arguments.seconds:g}"]
    options += ["--dry-run"] * arguments.dry_run
    lines = []
    for name in arguments.stages:
        found = run_stage(name, out, arguments.limit_s or STAGES[name], options)
        lines.append(line(name, found))
        tell(lines[-1])
        bundle(out)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
