"""Processes of real engines killed and stopped at random under load: is an answer lost or wrong?

Decode and prefill workers alike, hosts and schedulers, for ten minutes, over NIXL or Mooncake. A
request may fail only with a 503, when the whole plan was down; anything else ends with code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx

from benchmarks.asking import CHAT, chat_body, percentiles
from benchmarks.provenance import LOGS, conclude, tell
from tests.engine.serving import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

FLOAT32 = '{"dtype": "float32"}'  # a token does not depend on who shares the batch
PROMPTS = [f"Write {i + 3} sentences about the number {i}." for i in range(16)]
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


class StreamFailed(Exception):
    """A stream that ended in an error event."""

    def __init__(self, status: int, error: dict[str, Any]) -> None:
        super().__init__(f"{status} {error}")
        self.code = error.get("code")
        self.status = status


async def streamed(client: httpx.AsyncClient, wanted: dict[str, Any]) -> tuple[str, float]:
    """Return the text of a streamed chat and the longest pause in it, in seconds."""
    text, last, pause_s = "", time.monotonic(), 0.0
    async with client.stream("POST", CHAT, json=wanted) as response:
        if response.status_code != 200:
            raise StreamFailed(response.status_code, json.loads(await response.aread())["error"])
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise StreamFailed(200, event["error"])
            pause_s = max(pause_s, time.monotonic() - last)
            last = time.monotonic()
            text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
    return text, pause_s


async def ask_until(
    client: httpx.AsyncClient, until: float, right: dict[str, str], tally: Tally, seed: int
) -> None:
    chance = random.Random(seed)
    while time.monotonic() < until:
        prompt = chance.choice(PROMPTS)
        tally.sent += 1
        try:
            text, pause_s = await streamed(client, chat_body(prompt, TOKENS))
        except StreamFailed as error:
            down = error.code in ("not_serving", "worker_died", "transfer_failed")
            (tally.unavailable if down else tally.failed).append(str(error))
            continue
        except httpx.HTTPError as error:
            tally.failed.append(repr(error))
            continue
        tally.pauses_s.append(pause_s)
        if text == right[prompt]:
            tally.answered += 1
        else:
            tally.wrong.append({"prompt": prompt, "text": text, "right": right[prompt]})


def victims(server: ServerProcess) -> Iterator[tuple[str, int]]:
    """Yield what can be struck now: name and pid of hosts and schedulers."""
    for worker in server.get("/health")[1]["workers"]:
        if worker["state"] == "ready":
            yield f"{worker['name']} host", worker["pid"]
            yield from ((f"{worker['name']} scheduler", pid) for pid in worker["scheduler_pids"])


async def strike_until(
    server: ServerProcess, until: float, every_s: float, chance: random.Random
) -> list[dict[str, Any]]:
    """Kill (or, one time in ten, stop) a random process again and again; return what was done."""
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
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as client:
        texts = await asyncio.gather(
            *(streamed(client, chat_body(prompt, TOKENS)) for prompt in PROMPTS)
        )
        right = {prompt: text for prompt, (text, _) in zip(PROMPTS, texts, strict=True)}
        tally, until = Tally(), time.monotonic() + seconds
        asking = [
            asyncio.create_task(ask_until(client, until, right, tally, seed))
            for seed in range(STREAMS)
        ]
        strikes = await strike_until(server, until, every_s, random.Random(5))
        await asyncio.gather(*asking)
    whole = await asyncio.to_thread(
        server.wait_until, lambda: _whole(server) or None, "whole again", 120
    )
    summary = {
        "seconds": seconds,
        "strikes": len(strikes),
        "requests_sent": tally.sent,
        "answered": tally.answered,
        "wrong": len(tally.wrong),
        "failed_503_plan_down": len(tally.unavailable),
        "failed": len(tally.failed),
        "longest_pause_s": percentiles(tally.pauses_s),
        "whole_at_the_end": whole,
        "restarts": {w["name"]: w["restarts"] for w in server.get("/health")[1]["workers"]},
    }
    details = {
        "wrong_answers": tally.wrong,
        "unavailable": tally.unavailable,
        "failed": tally.failed,
    }
    return {"summary": summary, "strikes": strikes, "pauses_s": tally.pauses_s, **details}


def _whole(server: ServerProcess) -> bool:
    health = server.get("/health")[1]
    return bool(health and health["status"] == "ready" and health["inflight"] == 0)


def kills(arguments: argparse.Namespace) -> dict[str, Any]:
    """Kill both halves of requests at random moments, for ten minutes."""
    seconds, every_s = (60.0, 8.0) if arguments.quick else (arguments.seconds, 15.0)
    settings = {
        "DECODE_REPLICAS": "2",
        "ENGINE_ARGS": FLOAT32,
        "HANG_TIMEOUT_S": "20",
        # The question is what happens to requests, not when to give a worker up.
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
