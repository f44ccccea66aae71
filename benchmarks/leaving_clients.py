"""Three times the server's capacity for ten minutes, half of the clients leaving: does a slot leak?

Requests arrive as a Poisson process at three times the rate that this machine was just measured to
complete, at a server that may run 16 and queue 48 for two seconds each. Every second client closes
its connection after a random part of an answer's time. Afterwards nothing may run or wait, and 16
requests must run at once. Exits with code 1 otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx

from benchmarks.asking import CHAT, chat_body, percentiles
from benchmarks.liveness import Liveness
from benchmarks.provenance import LOGS, conclude, tell
from tests.engine.serving import ServerProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PLACES, QUEUE, QUEUE_TIMEOUT_S = 16, 48, 2.0
TOKENS = 16
TIMES_THE_LOAD = 3.0
LEAVING_SHARE = 0.5
_AFTERWARDS_S = 60.0


@dataclass
class Tally:
    """Outcomes of the requests; `seen` has the numbers running and queued, once a second."""

    sent: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    completed_by_minute: Counter[int] = field(default_factory=Counter)
    seen: list[tuple[int, int]] = field(default_factory=list)


async def stream(client: httpx.AsyncClient, number: int) -> tuple[int, str]:
    """Return the status and how a streamed answer ended: `whole`, or the code of its error."""
    body = chat_body(f"Say something about the number {number}.", TOKENS)
    async with client.stream("POST", CHAT, json=body) as response:
        text = "".join([piece async for piece in response.aiter_text()])
    whole = response.status_code == 200 and text.rstrip().endswith("data: [DONE]")
    return response.status_code, "whole" if whole and '"error"' not in text else text[:200]


async def capacity(client: httpx.AsyncClient, seconds: float) -> tuple[float, float]:
    """Return the completed requests/s with all places taken, and the mean seconds of one."""
    until, took = time.monotonic() + seconds, list[float]()
    numbers = iter(range(10**9))

    async def one_after_another() -> None:
        while (began := time.monotonic()) < until:
            assert await stream(client, next(numbers)) == (200, "whole")
            took.append(time.monotonic() - began)

    await asyncio.gather(*(one_after_another() for _ in range(PLACES)))
    return len(took) / seconds, sum(took) / len(took)


async def come_and_leave(
    client: httpx.AsyncClient, number: int, leaves_after_s: float | None, tally: Tally, start: float
) -> None:
    tally.sent += 1
    began = time.monotonic()
    try:
        async with asyncio.timeout(leaves_after_s):
            status, end = await stream(client, number)
    except TimeoutError:
        tally.ends["left"] += 1
        return
    except httpx.HTTPError as error:  # any failure is a result
        tally.ends[repr(error)[:80]] += 1
        return
    tally.ends[str(status) if end == "whole" or status in (429, 503, 504) else end] += 1
    if end == "whole":
        tally.seconds.append(time.monotonic() - began)
        tally.completed_by_minute[int((time.monotonic() - start) / 60)] += 1


async def arrivals(rate: float, seconds: float, draw: random.Random) -> AsyncIterator[int]:
    """Yield a number at each arrival of a Poisson process with `rate` per second."""
    due = time.monotonic()
    until, number = due + seconds, 0
    while due < until:
        await asyncio.sleep(max(due - time.monotonic(), 0.0))
        yield number
        number, due = number + 1, due + draw.expovariate(rate)


async def watch(server: ServerProcess, tally: Tally) -> None:
    while True:
        health = (await asyncio.to_thread(server.get, "/health"))[1]
        tally.seen.append((health["inflight"], health["queued"]))
        await asyncio.sleep(1)


async def overload(server: ServerProcess, seconds: float, seed: int) -> dict[str, Any]:
    draw, tally = random.Random(seed), Tally()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=PLACES)
    async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client:
        fits, answer_s = await capacity(client, min(20.0, seconds / 2))
        tell(
            f"{fits:.1f} requests/s fit, each in {answer_s:.2f} s; now {TIMES_THE_LOAD:g} times it"
        )
        start = time.monotonic()
        watching = asyncio.create_task(watch(server, tally))
        async with asyncio.TaskGroup() as clients:
            async for number in arrivals(TIMES_THE_LOAD * fits, seconds, draw):
                leaves = draw.random() < LEAVING_SHARE
                after_s = draw.uniform(0, answer_s + QUEUE_TIMEOUT_S) if leaves else None
                clients.create_task(come_and_leave(client, number, after_s, tally, start))
        watching.cancel()
        afterwards = await asyncio.to_thread(_quiet, server)
        together = await asyncio.gather(*(stream(client, number) for number in range(PLACES)))
    return {
        "seconds": seconds,
        "places": PLACES,
        "fits_requests_per_s": round(fits, 2),
        "answer_s": round(answer_s, 2),
        "offered_requests_per_s": round(tally.sent / seconds, 2),
        "sent": tally.sent,
        "ends": dict(tally.ends.most_common()),
        "completed_seconds": percentiles(tally.seconds),
        "completed_by_minute": [
            tally.completed_by_minute[minute] for minute in sorted(tally.completed_by_minute)
        ],
        "most_inflight": max(inflight for inflight, _ in tally.seen),
        "most_queued": max(queued for _, queued in tally.seen),
        **afterwards,
        "whole_together_afterwards": sum(end == (200, "whole") for end in together),
    }


def _quiet(server: ServerProcess) -> dict[str, Any]:
    """Wait until nothing runs or waits; return what is left."""
    until = time.monotonic() + _AFTERWARDS_S
    while True:
        health = server.get("/health")[1]
        if health["inflight"] + health["queued"] == 0 or time.monotonic() > until:
            restarts = sum(worker["restarts"] for worker in health["workers"])
            return {
                "inflight_afterwards": health["inflight"],
                "queued_afterwards": health["queued"],
                "status_afterwards": health["status"],
                "restarts": restarts,
            }
        time.sleep(0.2)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    settings = {
        "MAX_INFLIGHT": str(PLACES),
        "MAX_QUEUE": str(QUEUE),
        "QUEUE_TIMEOUT_S": str(QUEUE_TIMEOUT_S),
        "DISAGG_TRANSFER_BACKEND": "nixl",
        "EVENT_LOOP": arguments.event_loop,
    }
    seconds = 20.0 if arguments.quick else arguments.seconds
    with (
        ServerProcess(LOGS / "leaving_clients.log", **settings) as server,
        Liveness(f"{server.url}/health/live") as live,
    ):
        summary = asyncio.run(overload(server, seconds, arguments.seed))
    summary |= {"live_s": percentiles(live.took), "settings": settings}
    expected = {"200", "429", "503", "504", "left"}
    wrong = sum(number for end, number in summary["ends"].items() if end not in expected)
    wrong += summary["inflight_afterwards"] + summary["queued_afterwards"] + summary["restarts"]
    wrong += PLACES - summary["whole_together_afterwards"]
    wrong += abs(summary["sent"] - sum(summary["ends"].values()))
    return {"summary": summary, "wrong": wrong}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--event-loop", choices=("auto", "uvloop", "asyncio"), default="auto")
    parser.add_argument("--quick", action="store_true", help="a smoke run; not kept")
    arguments = parser.parse_args()
    LOGS.mkdir(exist_ok=True)
    return conclude("leaving_clients", measure(arguments), arguments)


if __name__ == "__main__":
    sys.exit(main())
