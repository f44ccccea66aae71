"""Requests that crash engines, again and again, beside honest streams: what does it cost them?

Sixteen streams at a time over real engines, and every five seconds a request with another prompt
that crashes the engine it comes to (`benchmarks.crash_mark`). Every honest text must be what it was
before the first crash, no worker may be given up, and the poison must end with the engine's words.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import re
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx

from benchmarks import crash_mark
from benchmarks.asking import CHAT, chat_body, percentiles
from benchmarks.provenance import LOGS, conclude, tell
from benchmarks.soak import FLOAT32, streamed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.engine.serving import ServerProcess

STREAMS = 16
TOKENS = 64
PROMPTS = [f"Write {i + 3} sentences about the number {i}." for i in range(STREAMS)]
EVERY_S = 5.0
_DEATH = re.compile(r"ERROR .*supervisor (\S+) failed: ")


@dataclass
class Honest:
    """What became of the honest streams."""

    sent: int = 0
    exact: int = 0
    wrong: list[dict[str, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    pauses_s: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@dataclass
class Poison:
    """What became of the requests that crash engines."""

    sent: int = 0
    ends: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


async def ask(
    client: httpx.AsyncClient, prompt: str, right: dict[str, str], honest: Honest, until: float
) -> None:
    """Ask for the same answer until the time is up; the last answer is waited for."""
    while True:
        honest.sent += 1
        began = time.monotonic()
        try:
            text, pause_s = await streamed(client, chat_body(prompt, TOKENS))
        except Exception as error:  # whatever it is, it is the result
            honest.failed.append(repr(error))
        else:
            honest.pauses_s.append(pause_s)
            honest.seconds.append(time.monotonic() - began)
            if text == right[prompt]:
                honest.exact += 1
            else:
                honest.wrong.append({"prompt": prompt, "text": text, "right": right[prompt]})
        if time.monotonic() >= until:
            return


async def poison(client: httpx.AsyncClient, words: str, number: int, tally: Poison) -> None:
    tally.sent += 1
    began = time.monotonic()
    body = chat_body(f"Poison number {number}: {words}", 32, stream=False)
    response = await client.post(CHAT, json=body)
    tally.seconds.append(time.monotonic() - began)
    error = response.json().get("error", {})
    tally.ends.append(f"{response.status_code} {error.get('code')}")
    if "mark in the prompt" not in str(error.get("message")):
        tell(f"poison {number} ended without the engine's words: {error or response.text[:200]}")


async def poison_until(
    client: httpx.AsyncClient, marks: Iterator[str], until: float, tally: Poison
) -> None:
    sent = []
    for number, words in enumerate(marks):
        sent.append(asyncio.create_task(poison(client, words, number, tally)))
        await asyncio.sleep(EVERY_S)
        if time.monotonic() >= until:
            break
    await asyncio.gather(*sent)


async def under_poison(server: ServerProcess, roles: list[str], seconds: float) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=None)
    honest, tally = Honest(), Poison()
    async with httpx.AsyncClient(base_url=server.url, timeout=590, limits=limits) as client:
        texts = await asyncio.gather(
            *(streamed(client, chat_body(prompt, TOKENS)) for prompt in PROMPTS)
        )
        right = {prompt: text for prompt, (text, _) in zip(PROMPTS, texts, strict=True)}
        tell(f"{len(right)} texts are known; now the poison")
        until = time.monotonic() + seconds
        asking = [ask(client, prompt, right, honest, until) for prompt in PROMPTS]
        marks = itertools.cycle(crash_mark.mark(role) for role in roles)
        await asyncio.gather(*asking, poison_until(client, marks, until, tally))
    whole = await asyncio.to_thread(
        server.wait_until, lambda: _whole(server) or None, "whole again", 120
    )
    summary = {
        "seconds": seconds,
        "roles_that_crash": roles,
        "honest_streams_at_a_time": STREAMS,
        "honest_sent": honest.sent,
        "honest_exact": honest.exact,
        "honest_wrong": len(honest.wrong),
        "honest_failed": len(honest.failed),
        "honest_seconds": percentiles(honest.seconds),
        "honest_longest_pause_s": percentiles(honest.pauses_s),
        "poison_sent": tally.sent,
        "poison_ends": {end: tally.ends.count(end) for end in sorted(set(tally.ends))},
        "poison_seconds": percentiles(tally.seconds),
        **deaths(server.log),
        "whole_at_the_end": whole,
        "restarts": {w["name"]: w["restarts"] for w in server.get("/health")[1]["workers"]},
    }
    details = {"wrong_answers": honest.wrong, "failed": honest.failed}
    return {"summary": summary, **details, "pauses_s": honest.pauses_s}


def deaths(log: Path) -> dict[str, Any]:
    """Return what the server's log says of deaths."""
    lines = log.read_text().splitlines()
    died = [found[1] for line in lines if (found := _DEATH.search(line))]
    given_up = sum("given up after" in line for line in lines)
    return {"engine_deaths": len(died), "workers_given_up": given_up}


def _whole(server: ServerProcess) -> bool:
    health = server.get("/health")[1]
    return bool(health and health["status"] == "ready" and health["inflight"] == 0)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    roles = arguments.roles.split(",")
    settings = {
        "DECODE_REPLICAS": str(arguments.decode_replicas),
        "PREFILL_REPLICAS": str(arguments.prefill_replicas),
        "ENGINE_ARGS": FLOAT32,
        "DISAGG_TRANSFER_BACKEND": arguments.transfer,
        **({"CPU_THREADS": str(arguments.threads)} if arguments.threads else {}),
    }
    with crash_mark.CrashingServer(LOGS / "poison.log", **settings) as server:
        result = asyncio.run(under_poison(server, roles, arguments.seconds))
    summary = result["summary"]
    summary["settings"] = settings
    unexpected = {end for end in summary["poison_ends"] if not end.endswith("engine_crashed")}
    result["wrong"] = (
        summary["honest_sent"]
        - summary["honest_exact"]
        + summary["workers_given_up"]
        + len(unexpected)
    )
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--roles", default="prefill,decode", help="whose engines crash, in turn")
    parser.add_argument("--prefill-replicas", type=int, default=1)
    parser.add_argument("--decode-replicas", type=int, default=1)
    parser.add_argument("--transfer", choices=("nixl", "mooncake"), default="nixl")
    parser.add_argument("--threads", type=int, help="of an engine: 1 on a machine that is shared")
    parser.add_argument("--name", default="poison", help="of the result's file")
    parser.add_argument("--quick", action="store_true", help="a smoke run; not kept")
    arguments = parser.parse_args()
    LOGS.mkdir(exist_ok=True)
    if arguments.quick:
        arguments.seconds = min(arguments.seconds, 30.0)
    return conclude(arguments.name, measure(arguments), arguments)


if __name__ == "__main__":
    sys.exit(main())
