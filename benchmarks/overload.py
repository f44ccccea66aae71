"""A thousand requests at once to a server that may run 64: does every request get an answer?

Each must be a 200, a 429 or a 503 with Retry-After; `/health/live` answers within 100 ms, and the
front's memory does not grow. Exits with code 1 otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.asking import CHAT, chat_body, percentiles
from benchmarks.provenance import LOGS, conclude, tell
from tests.engine.serving import ServerProcess

CLIENT_NICENESS = 10
PROBE_S = 12
PROBE = """
import json, sys, time, urllib.request
took, until = [], time.monotonic() + float(sys.argv[2])
while time.monotonic() < until:
    began = time.monotonic()
    with urllib.request.urlopen(sys.argv[1], timeout=10) as response:
        response.read()
    took.append(time.monotonic() - began)
    time.sleep(0.02)
print(json.dumps(took))
"""


def _lower_priority() -> None:
    os.nice(CLIENT_NICENESS)
    os.setsid()  # with autogroups, niceness counts only within a session
    session = Path("/proc/self/autogroup")
    if session.exists():
        session.write_text(str(CLIENT_NICENESS))


def burst(url: str, count: int) -> dict[str, Any]:
    """Send `count` requests at once; return their statuses."""
    return asyncio.run(_burst(url, count))


async def _burst(url: str, count: int) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=None)
    statuses: Counter[str] = Counter()
    without_retry_after = 0
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:

        async def one(number: int) -> None:
            nonlocal without_retry_after
            body = chat_body(f"Say the number {number}.", 8, stream=False)
            response = await client.post(CHAT, json=body)
            statuses[str(response.status_code)] += 1
            if response.status_code in (429, 503) and "retry-after" not in response.headers:
                without_retry_after += 1

        await asyncio.gather(*(one(number) for number in range(count)))
    return {"statuses": dict(statuses), "without_retry_after": without_retry_after}


def overload(arguments: argparse.Namespace) -> dict[str, Any]:
    """Send 1,000 requests at once to a server that runs 64; watch its liveness and memory."""
    count, bursts = (200, 2) if arguments.quick else (1000, 4)
    settings = {"MAX_INFLIGHT": "64", "DISAGG_TRANSFER_BACKEND": arguments.transfer}
    # In production clients run on other machines: here they must not take the front's CPU time.
    clients = ProcessPoolExecutor(1, get_context("spawn"), _lower_priority)
    with clients, ServerProcess(LOGS / "overload.log", **settings) as server:
        rss_mib, runs = [_rss_mib(server)], []
        for number in range(bursts):
            runs.append(_probed_burst(server, clients, count))
            rss_mib.append(_rss_mib(server))
            tell(f"burst {number + 1} of {bursts}: {runs[-1][0]}, front {rss_mib[-1]} MiB")
        inflight = server.get("/health")[1]["inflight"]
    found, live_s = [run for run, _ in runs], [s for _, took in runs for s in took]
    answered = sum(sum(run["statuses"].values()) for run in found)
    others = {status for run in found for status in run["statuses"]} - {"200", "429", "503"}
    summary = {
        "bursts": bursts,
        "requests_a_burst": count,
        "answered": answered,
        "statuses": [run["statuses"] for run in found],
        "refusals_without_retry_after": sum(run["without_retry_after"] for run in found),
        "live_s": percentiles(live_s),
        "front_rss_mib": rss_mib,
        "inflight_afterwards": inflight,
    }
    wrong = len(others) + summary["refusals_without_retry_after"] + inflight
    wrong += count * bursts - answered + (max(live_s) >= 0.1)
    return {"summary": summary, "live_s": live_s, "wrong": wrong}


def _probed_burst(
    server: ServerProcess, clients: ProcessPoolExecutor, count: int
) -> tuple[dict[str, Any], list[float]]:
    """Return what a burst got, and the seconds that each answer of `/health/live` took."""
    probe = subprocess.Popen(
        [sys.executable, "-c", PROBE, f"{server.url}/health/live", str(PROBE_S)],
        stdout=subprocess.PIPE,
    )
    time.sleep(1)
    run: dict[str, Any] = clients.submit(burst, server.url, count).result()
    took: list[float] = json.loads(probe.communicate()[0])
    return run, took


def _rss_mib(server: ServerProcess) -> float:
    front = psutil.Process(server.process.pid)
    return round(float(front.memory_info().rss) / 2**20, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transfer", choices=("nixl", "mooncake"), default="nixl")
    parser.add_argument("--quick", action="store_true", help="a smoke run; not kept")
    arguments = parser.parse_args()
    LOGS.mkdir(exist_ok=True)
    name = "overload" if arguments.transfer == "nixl" else "overload_mooncake"
    return conclude(name, overload(arguments), arguments)


if __name__ == "__main__":
    sys.exit(main())
