"""Requests that crash engines repeatedly beside other streams: what do those streams lose?

Sixteen streams at a time over real engines, and every five seconds a request with a new prompt that
crashes the engine it is sent to (`benchmarks.crash_mark`). The text of every other stream must be
what it was before the first crash, no worker may be given up, and the crashing request must end
with the engine's error message.
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

from benchmarks import crash_mark
from benchmarks.asking import CHAT, chat_body, percentiles
from benchmarks.exact_streams import FLOAT32, PROMPTS, exact_streams, recovered
from benchmarks.provenance import LOGS, conclude, tell

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx

    from benchmarks.exact_streams import ExactStreams
    from tests.engine.serving import ServerProcess

TOKENS = 64
EVERY_S = 5.0
_DEATH = re.compile(r"ERROR .*supervisor (\S+) failed: ")


@dataclass
class Honest:
    """Outcomes of the streams that crash nothing."""

    sent: int = 0
    exact: int = 0
    wrong: list[dict[str, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    pauses_s: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def count(self, difference: dict[str, str] | None, pause_s: float, seconds: float) -> None:
        self.pauses_s.append(pause_s)
        self.seconds.append(seconds)
        if difference is None:
            self.exact += 1
        else:
            self.wrong.append(difference)

    def summary(self) -> dict[str, Any]:
        return {
            "honest_streams_at_a_time": len(PROMPTS),
            "honest_sent": self.sent,
            "honest_exact": self.exact,
            "honest_wrong": len(self.wrong),
            "honest_failed": len(self.failed),
            "honest_seconds": percentiles(self.seconds),
            "honest_longest_pause_s": percentiles(self.pauses_s),
        }


@dataclass
class Poison:
    """Outcomes of the requests that crash engines."""

    sent: int = 0
    ends: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        return {
            "poison_sent": self.sent,
            "poison_ends": {end: self.ends.count(end) for end in sorted(set(self.ends))},
            "poison_seconds": percentiles(self.seconds),
        }


async def ask_until(streams: ExactStreams, prompt: str, until: float, honest: Honest) -> None:
    """Ask for the same answer until `until`, at least once; the last answer is waited for."""
    while True:
        honest.sent += 1
        began = time.monotonic()
        try:
            difference, pause_s = await streams.ask(prompt)
        except Exception as error:  # any failure is a result
            honest.failed.append(repr(error))
        else:
            honest.count(difference, pause_s, time.monotonic() - began)
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
    honest, tally = Honest(), Poison()
    async with exact_streams(server, TOKENS, timeout_s=590) as streams:
        tell(f"{len(PROMPTS)} texts are known; now the poison")
        until = time.monotonic() + seconds
        asking = [ask_until(streams, prompt, until, honest) for prompt in PROMPTS]
        marks = itertools.cycle(crash_mark.mark(role) for role in roles)
        await asyncio.gather(*asking, poison_until(streams.client, marks, until, tally))
    summary = {"seconds": seconds, "roles_that_crash": roles}
    summary |= honest.summary() | tally.summary() | await recovered(server) | deaths(server.log)
    details = {"wrong_answers": honest.wrong, "failed": honest.failed}
    return {"summary": summary, **details, "pauses_s": honest.pauses_s}


def deaths(log: Path) -> dict[str, Any]:
    """Count engine deaths and given-up workers in the server's log."""
    lines = log.read_text().splitlines()
    died = [found[1] for line in lines if (found := _DEATH.search(line))]
    given_up = sum("given up after" in line for line in lines)
    return {"engine_deaths": len(died), "workers_given_up": given_up}


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
