"""Chat and long prompts at once: PD without and with a prefill window, and two unified replicas.

All plans run at the same time, with small KV pools; one is measured at a time, in both orders.
MIXED_WINDOW is the window in tokens, MIXED_SECONDS the length of each load.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import aiohttp

from benchmarks.asking import percentiles
from benchmarks.gpu.host import DUMMY, Host
from benchmarks.gpu.stages.load import CHAT, DRY, LONG, Mix, Outcome, ask, texts
from tests.engine.serving import ServerProcess

if TYPE_CHECKING:
    from benchmarks.gpu.journal import Found, Journal

WINDOW = "MIXED_WINDOW"
SECONDS = "MIXED_SECONDS"
#: Chat and long prompts, requests/s.
RATES = (48.0, 5.0)
LONG_ALONE = 8.0
_SHARED = "benchmarks/gpu/shared_server.py"


@dataclass(frozen=True, slots=True)
class _Load:
    """Both mixes with their rates; a mix at rate 0 is left out."""

    name: str
    mixes: tuple[tuple[Mix, float], ...]
    seconds: float


def run(host: Host, journal: Journal) -> None:
    journal.part("chat and long prompts", partial(_measured, host, journal), gpus=2)


def _plans(host: Host) -> dict[str, dict[str, str]]:
    window = os.environ.get(WINDOW, "64" if host.dry_run else "8192")
    in_pd = {"PD_MODE": "on", "DISAGG_TRANSFER_BACKEND": "nixl"}
    pools = {
        "PREFILL_ENGINE_ARGS": json.dumps({"max_total_tokens": 60_000}),
        "DECODE_ENGINE_ARGS": json.dumps({"max_total_tokens": 120_000}),
    }
    if host.dry_run:
        pools = {}
    return {
        "PD, no window": in_pd | pools,
        f"PD, window {window}": in_pd | pools | {"PREFILL_WINDOW_TOKENS": window},
        "two unified replicas": {"UNIFIED_REPLICAS": "2"},
    }


def _measured(host: Host, journal: Journal) -> Found:
    with ExitStack() as stack:
        began = time.monotonic()
        servers = _started(host, stack)
        found: Found = {"ready_s": round(time.monotonic() - began, 1), "runs": []}
        for name, server in servers.items():
            asyncio.run(_at_once(server.url, _warm(host), f"warm {name}"))
        for order, names in enumerate((list(servers), list(servers)[::-1])):
            for load in _loads(host)[: 2 - order]:
                for name in names:
                    if len(load.mixes) == 1 and "PD" not in name:
                        continue
                    salt = f"{order} {name} {load.name}"
                    said = asyncio.run(_at_once(servers[name].url, load, salt))
                    found["runs"].append({"plan": name, "load": load.name} | said)
                    journal.so_far("chat and long prompts", found)
        found["plans"] = {
            name: server.get("/health")[1]["plan"] for name, server in servers.items()
        }
        return found


def _started(host: Host, stack: ExitStack) -> dict[str, ServerProcess]:
    args = host.settings(**DUMMY)["engine_args"]
    common = {
        "DEVICE": host.device,
        "MODEL_PATH": str(host.big_model()),
        "MAX_INFLIGHT": "1024",
        "CANARY_INTERVAL_S": "600",
        "HANG_TIMEOUT_S": "120",
    }
    if not host.dry_run:
        common["MEM_FRACTION_STATIC"] = "0.95"  # three engines share a GPU; their pools are set
    servers: dict[str, ServerProcess] = {}
    for number, (name, own) in enumerate(_plans(host).items()):
        engine_args = args
        if "UNIFIED_REPLICAS" in own and not host.dry_run:
            engine_args = args | {"max_total_tokens": 150_000}
        servers[name] = ServerProcess(
            host.folder / f"mixed-{number}.log",
            script=_SHARED,
            **common | own | {"ENGINE_ARGS": json.dumps(engine_args)},
        )
    with ThreadPoolExecutor(len(servers)) as pool:
        for started in [pool.submit(stack.enter_context, one) for one in servers.values()]:
            started.result()
    return servers


def _loads(host: Host) -> list[_Load]:
    chat, long = DRY if host.dry_run else (CHAT, LONG)
    seconds = float(os.environ.get(SECONDS, "2" if host.dry_run else "12"))
    both, alone = RATES, LONG_ALONE
    if host.dry_run:
        both, alone = (2.0, 1.0), 1.0
    return [
        _Load("both", ((chat, both[0]), (long, both[1])), seconds),
        _Load("long alone", ((long, alone),), seconds / 2),
    ]


def _warm(host: Host) -> _Load:
    return replace(_loads(host)[0], seconds=1.0 if host.dry_run else 4.0)


async def _at_once(url: str, load: _Load, salt: str) -> Found:
    connector = aiohttp.TCPConnector(limit=0)
    limit = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=connector, timeout=limit) as session:
        began = time.monotonic()
        outcomes = await asyncio.gather(
            *(_offered(session, url, mix, rate, load.seconds, salt) for mix, rate in load.mixes)
        )
        took_s = time.monotonic() - began
    kinds = zip(load.mixes, outcomes, strict=True)
    return {mix.name: _summary(of_mix, rate, took_s) for (mix, rate), of_mix in kinds}


async def _offered(
    session: aiohttp.ClientSession, url: str, mix: Mix, rate: float, seconds: float, salt: str
) -> list[Outcome]:
    draw = random.Random(f"{salt} {mix.name} {rate}")
    count = max(1, round(rate * seconds))
    # Arrivals are random, their number is exact.
    moments = sorted(draw.uniform(0, seconds) for _ in range(count))
    prompts = await asyncio.to_thread(texts, draw, mix, count)
    began = time.monotonic()
    asking = []
    for moment, prompt in zip(moments, prompts, strict=True):
        await asyncio.sleep(max(0.0, began + moment - time.monotonic()))
        asking.append(asyncio.create_task(ask(session, url, prompt, mix)))
    return list(await asyncio.gather(*asking))


def _summary(outcomes: list[Outcome], rate: float, took_s: float) -> Found:
    completed = [one for one in outcomes if one.error is None]
    gaps = [one.gaps_s for one in completed if one.gaps_s]
    return {
        "offered_per_s": rate,
        "offered": len(outcomes),
        "completed": len(completed),
        "errors": sorted({one.error for one in outcomes if one.error})[:5],
        "seconds": round(took_s, 2),
        "completed_per_s": round(len(completed) / took_s, 3),
        "first_token_s": percentiles([one.first_s for one in completed]),
        "mean_gap_s": percentiles([sum(of_one) / len(of_one) for of_one in gaps]),
        "longest_gap_s": percentiles([max(of_one) for of_one in gaps]),
    }
