"""Start-up time, private memory and idle CPU of `make serve`, with one and with two decode workers.

Both plans are started alternately, several times, in one run. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.provenance import LOGS, ROOT, conclude, tell

if TYPE_CHECKING:
    from pathlib import Path

PORT = 18790
URL = f"http://127.0.0.1:{PORT}"
START_TIMEOUT_S = 300.0


def start(decode_replicas: int, log: Path) -> tuple[subprocess.Popen[bytes], float]:
    """Run `make serve`; return its process and the seconds until it is ready."""
    settings = {"HATHORA_DEFAULT_PORT": str(PORT), "DECODE_REPLICAS": str(decode_replicas)}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["make", "serve"], cwd=ROOT, env=environment | settings, stdout=output, stderr=output
        )
    while not ready():
        if process.poll() is not None or time.monotonic() - began > START_TIMEOUT_S:
            raise RuntimeError(f"not ready, see {log}")
        time.sleep(0.02)
    return process, time.monotonic() - began


def ready() -> bool:
    try:
        with urllib.request.urlopen(f"{URL}/health/ready", timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def server_processes() -> list[psutil.Process]:
    """Return the front and everything below it."""
    with urllib.request.urlopen(f"{URL}/health", timeout=5) as response:
        worker_pid = json.load(response)["workers"][0]["pid"]
    # worker ← zygote ← front
    front = psutil.Process(worker_pid).parents()[1]
    return [front, *front.children(recursive=True)]


def memory_mib(processes: list[psutil.Process]) -> dict[str, float]:
    """Return the private memory (USS) of each process, by its role."""
    with urllib.request.urlopen(f"{URL}/health", timeout=5) as response:
        workers = json.load(response)["workers"]
    names = {worker["pid"]: f"{worker['name']} host" for worker in workers}
    for worker in workers:
        names |= dict.fromkeys(worker["scheduler_pids"], f"{worker['name']} scheduler")
    names |= {processes[0].pid: "front"}
    found: dict[str, float] = {}
    for process in processes:
        name = names.get(process.pid)
        if name is None:
            host = names.get(process.ppid(), "")
            is_zygote = process.ppid() == processes[0].pid
            name = "zygote" if is_zygote else f"{host.removesuffix(' host')} detokenizer"
        found[name] = round(process.memory_full_info().uss / 2**20, 1)
    return found


def idle_cores(processes: list[psutil.Process], seconds: float) -> float:
    """Return how many cores the processes use together while idle."""

    def used() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    before, began = used(), time.monotonic()
    time.sleep(seconds)
    return (used() - before) / (time.monotonic() - began)


def stop(process: subprocess.Popen[bytes], front: psutil.Process) -> None:
    front.send_signal(signal.SIGTERM)
    process.wait(60)


def measure(decode_replicas: int, log: Path, idle_s: float) -> dict[str, Any]:
    process, seconds = start(decode_replicas, log)
    processes = server_processes()
    try:
        result: dict[str, Any] = {
            "decode_replicas": decode_replicas,
            "ready_s": round(seconds, 2),
            "private_mib": memory_mib(processes),
        }
        if idle_s:
            result["idle_cores"] = round(idle_cores(processes, idle_s), 4)
            result["idle_s"] = idle_s
        return result
    finally:
        stop(process, processes[0])


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    medians = {
        replicas: statistics.median(r["ready_s"] for r in runs if r["decode_replicas"] == replicas)
        for replicas in (1, 2)
    }
    return {
        "ready_s_median": medians,
        "ratio_2_to_1_decode": round(medians[2] / medians[1], 3),
        "private_mib_total": {
            r["decode_replicas"]: round(sum(r["private_mib"].values()), 1) for r in runs
        },
        "idle_cores": next(r["idle_cores"] for r in reversed(runs) if "idle_cores" in r),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="starts of each plan")
    parser.add_argument("--idle-s", type=float, default=30.0, help="length of the idle watch")
    parser.add_argument("--quick", action="store_true", help="a smoke run; not kept")
    arguments = parser.parse_args()
    rounds, idle_s = (1, 5.0) if arguments.quick else (arguments.rounds, arguments.idle_s)
    LOGS.mkdir(exist_ok=True)
    runs = []
    for number in range(rounds):
        for replicas in (1, 2):
            last = number == rounds - 1 and replicas == 2
            run = measure(replicas, LOGS / "bench_startup.log", idle_s if last else 0.0)
            runs.append(run)
            tell(f"1 prefill + {replicas} decode: ready after {run['ready_s']} s")
    for name, mib in runs[-1]["private_mib"].items():
        print(f"{mib:8.1f} MiB  {name}")
    return conclude("startup", {"summary": summary(runs), "runs": runs, "wrong": 0}, arguments)


if __name__ == "__main__":
    sys.exit(main())
