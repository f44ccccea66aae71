"""Processes of real engines killed and stopped at random under load: is an answer lost or wrong?

Strikes hosts and schedulers of prefill and decode workers for ten minutes, over NIXL or Mooncake.
A request may fail only with a 503 while the whole plan was down; exits with code 1 otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx

from benchmarks.asking import percentiles
from benchmarks.exact_streams import FLOAT32, PROMPTS, StreamFailed, exact_streams, recovered
from benchmarks.provenance import LOGS, conclude, tell
from tests.engine.serving import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.exact_streams import ExactStreams

TOKENS = 48
STREAMS = 8


@dataclass
class Tally:
    """What became of the requests."""

    sent: int = 0
    answered: int = 0
    wrong: list[dict[str, str]] = field(default_factory=list)
    unavailable: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    pauses_s: list[float] = field(default_factory=list)

    def count(self, difference: dict[str, str] | None, pause_s: float) -> None:
        self.pauses_s.append(pause_s)
        if difference is None:
            self.answered += 1
        else:
            self.wrong.append(difference)


async def ask_until(streams: ExactStreams, until: float, tally: Tally, seed: int) -> None:
    chance = random.Random(seed)
    while time.monotonic() < until:
        tally.sent += 1
        try:
            difference, pause_s = await streams.ask(chance.choice(PROMPTS))
        except StreamFailed as error:
            down = error.code in ("not_serving", "worker_died", "transfer_failed")
            (tally.unavailable if down else tally.failed).append(str(error))
        except httpx.HTTPError as error:
            tally.failed.append(repr(error))
        else:
            tally.count(difference, pause_s)


def victims(server: ServerProcess) -> Iterator[tuple[str, int]]:
    """Yield name and pid of each host and scheduler of a ready worker."""
    for worker in server.get("/health")[1]["workers"]:
        if worker["state"] == "ready":
            yield f"{worker['name']} host", worker["pid"]
            yield from ((f"{worker['name']} scheduler", pid) for pid in worker["scheduler_pids"])


async def strike_until(
    server: ServerProcess, until: float, every_s: float, chance: random.Random
) -> list[dict[str, Any]]:
    """Kill (or, one time in ten, stop) a random process repeatedly; return what was done."""
    strikes: list[dict[str, Any]] = []
    began = time.monotonic()
    while (wait_s := chance.expovariate(1 / every_s)) + time.monotonic() < until - 30:
        await asyncio.sleep(wait_s)
        found = await asyncio.to_thread(lambda: list(victims(server)))
        if not found:
            continue
        name, pid = chance.choice(found)
        number = signal.SIGSTOP if chance.random() < 0.1 else signal.SIGKILL
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
        at_s = round(time.monotonic() - began, 1)
        strikes.append({"at_s": at_s, "process": name, "signal": number.name})
        tell(f"{at_s:7.1f} s: {number.name} to {name}")
    return strikes


async def kill_under_load(server: ServerProcess, seconds: float, every_s: float) -> dict[str, Any]:
    async with exact_streams(server, TOKENS, timeout_s=300) as streams:
        tally, until = Tally(), time.monotonic() + seconds
        asking = [
            asyncio.create_task(ask_until(streams, until, tally, seed)) for seed in range(STREAMS)
        ]
        strikes = await strike_until(server, until, every_s, random.Random(5))
        await asyncio.gather(*asking)
    summary = {
        "seconds": seconds,
        "strikes": len(strikes),
        "requests_sent": tally.sent,
        "answered": tally.answered,
        "wrong": len(tally.wrong),
        "failed_503_plan_down": len(tally.unavailable),
        "failed": len(tally.failed),
        "longest_pause_s": percentiles(tally.pauses_s),
        **await recovered(server),
    }
    details = {
        "wrong_answers": tally.wrong,
        "unavailable": tally.unavailable,
        "failed": tally.failed,
    }
    return {"summary": summary, "strikes": strikes, "pauses_s": tally.pauses_s, **details}


def kills(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the server under load while processes of both roles are killed at random moments."""
    seconds, every_s = (60.0, 8.0) if arguments.quick else (arguments.seconds, 15.0)
    settings = {
        "DECODE_REPLICAS": "2",
        "ENGINE_ARGS": FLOAT32,
        "HANG_TIMEOUT_S": "20",
        # Measured is what happens to requests, not when the supervisor gives a worker up.
        "RESTART_LIMIT": "1000",
        "DISAGG_TRANSFER_BACKEND": arguments.transfer,
    }
    with ServerProcess(LOGS / "soak_kills.log", **settings) as server:
        result = asyncio.run(kill_under_load(server, seconds, every_s))
    result["summary"]["transfer"] = arguments.transfer
    result["wrong"] = result["summary"]["wrong"] + result["summary"]["failed"]
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--transfer", choices=("nixl", "mooncake"), default="nixl")
    parser.add_argument("--quick", action="store_true", help="a smoke run; not kept")
    arguments = parser.parse_args()
    LOGS.mkdir(exist_ok=True)
    name = "soak" if arguments.transfer == "nixl" else "soak_mooncake"
    return conclude(name, kills(arguments), arguments)


if __name__ == "__main__":
    sys.exit(main())
