"""A thousand requests at once to a server that may run 64: does everybody get an answer?

Each is a 200, a 429 or a 503 with Retry-After; the front stays alive (`/health/live` within 100 ms)
and does not grow. Ends with code 1 otherwise.
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


def _go_last() -> None:
    os.nice(CLIENT_NICENESS)
    os.setsid()  # where Linux shares the CPU out by session, niceness counts within one alone
    session = Path("/proc/self/autogroup")
    if session.exists():
        session.write_text(str(CLIENT_NICENESS))


def burst(url: str, count: int) -> dict[str, Any]:
    """Send `count` requests at once; return what they got."""
    return asyncio.run(_burst(url, count))


async def _burst(url: str, count: int) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=None)
    statuses: Counter[str] = Counter()
    without_retry_after = 0
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:

        async def one(number: int) -> None:
            nonlocal without_retry_after
            wanted = chat_body(f"Say the number {number}.", 8, stream=False)
            response = await client.post(CHAT, json=wanted)
            statuses[str(response.status_code)] += 1
            if response.status_code in (429, 503) and "retry-after" not in response.headers:
                without_retry_after += 1

        await asyncio.gather(*(one(number) for number in range(count)))
    return {"statuses": dict(statuses), "without_retry_after": without_retry_after}


def overload(arguments: argparse.Namespace) -> dict[str, Any]:
    """Send 1,000 requests at once to a server that runs 64; watch its liveness and memory."""
    count, bursts = (200, 2) if arguments.quick else (1000, 4)
    settings = {"MAX_INFLIGHT": "64", "DISAGG_TRANSFER_BACKEND": arguments.transfer}
    # Elsewhere the clients are on other machines: here they must not take the front's share.
    clients = ProcessPoolExecutor(1, get_context("spawn"), _go_last)
    with clients, ServerProcess(LOGS / "overload.log", **settings) as server:
        front = psutil.Process(server.process.pid)
        runs, live_s, rss_mib = [], [], [_rss_mib(front)]
        for number in range(bursts):
            probe = subprocess.Popen(
                [sys.executable, "-c", PROBE, f"{server.url}/health/live", "12"],
                stdout=subprocess.PIPE,
            )
            time.sleep(1)
            runs.append(clients.submit(burst, server.url, count).result())
            took = json.loads(probe.communicate()[0])
            live_s += took
            rss_mib.append(_rss_mib(front))
            tell(
                f"burst {number + 1} of {bursts}: {runs[-1]}, live {percentiles(took)} s, "
                f"front {rss_mib[-1]} MiB"
            )
        inflight = server.get("/health")[1]["inflight"]
    answered = sum(sum(run["statuses"].values()) for run in runs)
    others = {s for run in runs for s in run["statuses"]} - {"200", "429", "503"}
    summary = {
        "bursts": bursts,
        "requests_a_burst": count,
        "answered": answered,
        "statuses": [run["statuses"] for run in runs],
        "refusals_without_retry_after": sum(run["without_retry_after"] for run in runs),
        "live_s": percentiles(live_s),
        "front_rss_mib": rss_mib,
        "inflight_afterwards": inflight,
    }
    wrong = len(others) + summary["refusals_without_retry_after"] + inflight
    wrong += count * bursts - answered + (max(live_s) >= 0.1)
    return {"summary": summary, "live_s": live_s, "wrong": wrong}


def _rss_mib(process: psutil.Process) -> float:
    return round(float(process.memory_info().rss) / 2**20, 1)


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
