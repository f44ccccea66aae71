"""A thousand requests to real engines, each aborted at a random moment: does anything leak?

Requests, KV tokens and queue places must return to what they were before, and the next request is
served at once. Exits with code 1 otherwise.
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
    """Start a request and abort it at a random moment; return which."""
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

    # More work than may run at once: a request is queued, prefilling or transferring by then.
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
    slots, chance = asyncio.Semaphore(128), random.Random(7)

    async def one(number: int) -> str:
        async with slots:
            moment = await abort_one(engine, random.Random(chance.random()))
        if number % 100 == 99:
            tell(f"{number + 1} of {count} requests")
        return moment

    moments = Counter(await asyncio.gather(*(one(number) for number in range(count))))
    return dict(moments)


def use(engine: PDEngine) -> dict[str, Any]:
    """Return what the engines report to hold, and what the front has open."""
    health = engine.health()
    workers = {w["name"]: [w["running"], w["kv_tokens_used"]] for w in health["workers"]}
    inflight = [worker["inflight"] for worker in health["workers"]]
    return {"workers": workers, "front": [health["inflight"], health["queued"], *inflight]}


def use_after(engine: PDEngine, expected: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """Poll `use` (heartbeats refresh it) until it is `expected` or the time is up; return it."""
    until = time.monotonic() + timeout_s
    while (found := use(engine)) != expected and time.monotonic() < until:
        time.sleep(0.2)
    return found


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Abort requests at random moments; compare what is held before and after."""
    settings: dict[str, Any] = {
        "decode_replicas": 2,
        "max_inflight": 32,
        "max_queue": 1000,
        "queue_timeout_s": 300,
        "disagg_transfer_backend": arguments.transfer,
        "pd_mode": "on",
    }
    with PDEngine(**settings) as engine:
        summary = _before_and_after(engine, 60 if arguments.quick else 1000)
    wrong = int(summary["after"] != summary["before"])
    return {"summary": summary | {"transfer": arguments.transfer}, "wrong": wrong}


def _before_and_after(engine: PDEngine, count: int) -> dict[str, Any]:
    params = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
    engine.generate(["Warm up."] * 8, params)
    names = [worker["name"] for worker in engine.health()["workers"]]
    idle = {"workers": {name: [0, 0] for name in names}, "front": [0] * 5}
    before = use_after(engine, idle, 30)
    moments = asyncio.run(abort_storm(engine, count))
    began = time.monotonic()
    engine.generate("The next request.", params)
    next_s = time.monotonic() - began
    after = use_after(engine, before, 30)
    workers = engine.health()["workers"]
    return {
        "requests": count,
        "moments": moments,
        "before": before,
        "after": after,
        "the_next_request_s": round(next_s, 3),
        "states_and_restarts": {w["name"]: [w["state"], w["restarts"]] for w in workers},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transfer", choices=("nixl", "mooncake"), default="nixl")
    parser.add_argument("--quick", action="store_true", help="a smoke run; not kept")
    arguments = parser.parse_args()
    log_to_file("abort_storm")
    name = "abort_storm" if arguments.transfer == "nixl" else "abort_storm_mooncake"
    return conclude(name, measure(arguments), arguments)


if __name__ == "__main__":
    sys.exit(main())
