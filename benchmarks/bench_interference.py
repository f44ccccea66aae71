"""How long prompts disturb decoding streams: with PD, and in one unified engine.

    python -m benchmarks.bench_interference

Some streams decode steadily while long prompts arrive at a fixed interval. Measured is the gap
between two events of a stream, as a client sees it. With PD, the prefill and the decode scheduler
have a core each; a unified engine has both cores and a thread for each.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx

from benchmarks.asking import CHAT, chat_body, percentiles
from benchmarks.provenance import LOGS, conclude, tell
from tests.engine.serving import ServerProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

STREAMS = 4
LONG_TOKENS = 1800
# More than a stream generates within a run: a finished one could not be disturbed.
STREAM_TOKENS = 4000
RATIO_WANTED = 0.5
PD = "PD"


@dataclass(frozen=True)
class Times:
    """How long streams are measured alone, and with a long prompt every `every_s`."""

    alone_s: float
    disturbed_s: float
    every_s: float


FULL, QUICK = Times(8.0, 40.0, 5.0), Times(2.0, 9.0, 4.0)

UNIFIED = {"PD_MODE": "off", "CPU_THREADS": "2"}
PLANS: dict[str, dict[str, str]] = {
    PD: {"PD_MODE": "on"},
    "unified, chunks as SGLang chooses": UNIFIED
    | {"ENGINE_ARGS": '{"chunked_prefill_size": null}'},
    "unified, chunks of 128": UNIFIED | {"ENGINE_ARGS": '{"chunked_prefill_size": 128}'},
}


def pin(workers: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Pin each of several schedulers to its own core, a single one to all; return the cores."""
    cores = sorted(os.sched_getaffinity(0))
    given: dict[str, list[int]] = {}
    for number, worker in enumerate(workers):
        mine = cores if len(workers) == 1 else [cores[number % len(cores)]]
        for pid in worker["scheduler_pids"]:
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(thread), mine)
        given[f"{worker['name']} scheduler"] = mine
    return given


@dataclass
class Watch:
    """The gaps of all streams: undisturbed ones, and those with long prompts beside them."""

    alone_ms: list[float] = field(default_factory=list)
    disturbed_ms: list[float] = field(default_factory=list)
    long_ms: list[float] = field(default_factory=list)
    disturbed: bool = False
    failures: list[str] = field(default_factory=list)

    def gap(self, seconds: float) -> None:
        into = self.disturbed_ms if self.disturbed else self.alone_ms
        into.append(round(1000 * seconds, 1))


async def events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


async def stream(
    client: httpx.AsyncClient, number: int, watch: Watch, flowing: asyncio.Event
) -> None:
    """Decode until cancelled; an earlier end is a failure."""
    body = chat_body(f"Tell a very long story about the number {number}.", STREAM_TOKENS)
    async with client.stream("POST", CHAT, json=body) as response:
        last = None
        async for event in events(response):
            if "error" in event or not event["choices"]:
                break
            now = time.monotonic()
            if last is not None:
                watch.gap(now - last)
                flowing.set()
            last = now
    watch.failures.append(f"stream {number} ended: {response.status_code}")


async def long_prompt(client: httpx.AsyncClient, chance: random.Random, watch: Watch) -> None:
    # Random token ids: no shared prefix, so the prefix cache never hits.
    ids = [chance.randrange(1000, 40_000) for _ in range(LONG_TOKENS)]
    body = {"model": "default", "prompt": ids, "max_tokens": 1, "temperature": 0}
    began = time.monotonic()
    response = await client.post("/v1/completions", json=body)
    if response.status_code != 200:
        watch.failures.append(f"long prompt: {response.status_code} {response.text[:200]}")
    watch.long_ms.append(round(1000 * (time.monotonic() - began), 1))


async def disturb(client: httpx.AsyncClient, times: Times, watch: Watch) -> None:
    """Send a long prompt every `every_s`, whether the previous one was answered or not."""
    chance = random.Random(11)
    watch.disturbed = True
    async with asyncio.TaskGroup() as group:
        for number in range(int(times.disturbed_s / times.every_s)):
            if number:
                await asyncio.sleep(times.every_s)
            group.create_task(long_prompt(client, chance, watch))
        await asyncio.sleep(times.every_s)


async def watch_streams(url: str, times: Times) -> Watch:
    """Measure the streams, first alone, then disturbed."""
    watch, limits = Watch(), httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        flowing = [asyncio.Event() for _ in range(STREAMS)]
        streams = [
            asyncio.create_task(stream(client, number, watch, one))
            for number, one in enumerate(flowing)
        ]
        try:
            async with asyncio.timeout(120):
                await asyncio.gather(*(one.wait() for one in flowing))
            watch.alone_ms.clear()
            await asyncio.sleep(times.alone_s)
            await disturb(client, times, watch)
        finally:
            for task in streams:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*streams)
    return watch


def measure(url: str, times: Times) -> dict[str, Any]:
    """Measure the server at `url`; return the gaps, raw and as percentiles."""
    watch = asyncio.run(watch_streams(url, times))
    return {
        "gaps_alone": percentiles(watch.alone_ms),
        "gaps": percentiles(watch.disturbed_ms),
        "long_prompts": percentiles(watch.long_ms),
        "failures": watch.failures,
        "raw": {
            "gaps_alone_ms": watch.alone_ms,
            "gaps_ms": watch.disturbed_ms,
            "long_prompts_ms": watch.long_ms,
        },
    }


def measure_plan(name: str, settings: dict[str, str], times: Times) -> dict[str, Any]:
    # A step with a long prompt may take long without being a hang.
    settings |= {"HANG_TIMEOUT_S": "120"}
    with ServerProcess(LOGS / "bench_interference.log", **settings) as server:
        pinned = pin(server.get("/health")[1]["workers"])
        found = {"plan": name, "settings": settings, "pinned": pinned}
        found |= measure(server.url, times)
    tell(f"{name}: gaps {found['gaps']} ms, alone {found['gaps_alone']} ms")
    return found


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    pd = next(run["gaps"]["p99"] for run in runs if run["plan"] == PD)
    names = ("plan", "gaps_alone", "gaps", "long_prompts")
    ratios = {r["plan"]: round(pd / r["gaps"]["p99"], 3) for r in runs if r["plan"] != PD}
    return {
        "streams": STREAMS,
        "long_prompt_tokens": LONG_TOKENS,
        "table": [{name: run[name] for name in names} for run in runs],
        "p99_ratio_of_pd": [
            {
                "to": name,
                "ratio": ratio,
                "wanted": f"at most {RATIO_WANTED}",
                "met": ratio <= RATIO_WANTED,
            }
            for name, ratio in ratios.items()
        ],
        "note": "Pinned are the schedulers alone; the load generator, the front and all other "
        "processes share the same cores.",
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run; not kept")
    arguments = parser.parse_args()
    LOGS.mkdir(exist_ok=True)
    times = QUICK if arguments.quick else FULL
    names = list(PLANS)[:2] if arguments.quick else list(PLANS)
    runs = [measure_plan(name, PLANS[name], times) for name in names]
    wrong = sum(len(run["failures"]) for run in runs)
    asked = {"alone_s": times.alone_s, "disturbed_s": times.disturbed_s, "every_s": times.every_s}
    result = {"summary": summary(runs) | asked, "runs": runs, "wrong": wrong}
    return conclude("interference", result, arguments)


if __name__ == "__main__":
    sys.exit(main())
