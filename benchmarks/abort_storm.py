"""A thousand requests to real engines, each given up at a random moment: is anything held after it?

Requests, KV tokens and places in the queue must be what they were before, and the next request is
served at once. Ends with code 1 otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from contextlib import aclosing
from typing import Any

from benchmarks.provenance import conclude, log_to_file, tell
from pd_eagle import PDEngine

MOMENTS = ("before submit", "soon", "later", "first delta", "midway", "at the end")


async def abort_one(engine: PDEngine, chance: random.Random) -> str:
    """Start a request and give it up at a random moment; return which."""
    moment = chance.choice(MOMENTS)
    new_tokens = chance.randint(2, 24)
    prompt = "Tell me a story. " * chance.randint(1, 60)
    params = {"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True}

    async def read(until: int) -> None:
        results = await engine.async_generate(prompt, params, stream=True)
        async with aclosing(results):
            seen = 0
            async for _ in results:
                seen += 1
                if seen == until:
                    return

    # Queued, prefilling or transferring, as it happens: there is more work than may run at once.
    delays_s = {"before submit": 0.0, "soon": chance.uniform(0, 0.3), "later": chance.uniform(0, 5)}
    if moment in delays_s:
        task = asyncio.create_task(read(-1))
        await asyncio.sleep(delays_s[moment])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    else:
        await read({"first delta": 1, "midway": max(new_tokens // 2, 1)}.get(moment, new_tokens))
    return moment


async def abort_storm(engine: PDEngine, count: int) -> dict[str, Any]:
    turn, chance = asyncio.Semaphore(128), random.Random(7)

    async def one(number: int) -> str:
        async with turn:
            moment = await abort_one(engine, random.Random(chance.random()))
        if number % 100 == 99:
            tell(f"{number + 1} of {count} requests")
        return moment

    moments = Counter(await asyncio.gather(*(one(number) for number in range(count))))
    return dict(moments)


def use(engine: PDEngine) -> dict[str, Any]:
    """Return what the engines say they hold, and what the front holds open."""
    health = engine.health()
    workers = {w["name"]: [w["running"], w["kv_tokens_used"]] for w in health["workers"]}
    inflight = [worker["inflight"] for worker in health["workers"]]
    return {"workers": workers, "front": [health["inflight"], health["queued"], *inflight]}


def settled(engine: PDEngine, wanted: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """Wait until `use` is what is wanted (it comes with the heartbeat), or the time is up."""
    until = time.monotonic() + timeout_s
    while (found := use(engine)) != wanted and time.monotonic() < until:
        time.sleep(0.2)
    return found


def aborts(arguments: argparse.Namespace) -> dict[str, Any]:
    """Give up requests at random moments; afterwards nothing is held."""
    count = 60 if arguments.quick else 1000
    settings: dict[str, object] = {
        "decode_replicas": 2,
        "max_inflight": 32,
        "max_queue": 1000,
        "queue_timeout_s": 300,
        "disagg_transfer_backend": arguments.transfer,
        "pd_mode": "on",
    }
    params = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
    with PDEngine(**settings) as engine:
        engine.generate(["Warm up."] * 8, params)
        idle = {
            "workers": {w["name"]: [0, 0] for w in engine.health()["workers"]},
            "front": [0] * 5,
        }
        before = settled(engine, idle, 30)
        moments = asyncio.run(abort_storm(engine, count))
        began = time.monotonic()
        engine.generate("The next request.", params)
        next_s = time.monotonic() - began
        after = settled(engine, before, 30)
        states = {w["name"]: [w["state"], w["restarts"]] for w in engine.health()["workers"]}
    summary = {
        "requests": count,
        "moments": moments,
        "before": before,
        "after": after,
        "the_next_request_s": round(next_s, 3),
        "states_and_restarts": states,
        "transfer": arguments.transfer,
    }
    return {"summary": summary, "wrong": int(after != before)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transfer", choices=("nixl", "mooncake"), default="nixl")
    parser.add_argument("--quick", action="store_true", help="a smoke run; not kept")
    arguments = parser.parse_args()
    log_to_file("abort_storm")
    name = "abort_storm" if arguments.transfer == "nixl" else "abort_storm_mooncake"
    return conclude(name, aborts(arguments), arguments)


if __name__ == "__main__":
    sys.exit(main())
