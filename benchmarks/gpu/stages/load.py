"""Open-loop load on the big shape: PD against two replicas, TP 2, and SGLang's own PD and router.

Two mixes, each at rising rates: time to the first token, gaps between tokens, completed requests/s
and goodput (requests/s within the service level). Prompts share no prefix.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import aiohttp

from benchmarks.asking import percentiles
from benchmarks.gpu.host import DUMMY, Host
from benchmarks.gpu.upstream import SGLangPair
from pd_eagle import demo
from pd_eagle.workers.engine import load_tokenizer
from tests.engine.serving import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.gpu.journal import Found, Journal


@dataclass(frozen=True, slots=True)
class Mix:
    """Requests of one kind; `first_s` and `gap_s` are the service level, `rates` in requests/s."""

    name: str
    prompt_tokens: int
    new_tokens: int
    rates: tuple[float, ...]
    first_s: float
    gap_s: float


CHAT = Mix("chat", 300, 100, (4, 16, 48), first_s=0.5, gap_s=0.04)
LONG = Mix("long prompts", 6000, 64, (2, 4, 8), first_s=2.0, gap_s=0.04)
SECONDS = 6.0
DRY = (
    Mix("chat", 16, 8, (2,), first_s=2.0, gap_s=0.5),
    Mix("long prompts", 200, 4, (1,), first_s=4.0, gap_s=0.5),
)
Urls = list[str]


def run(host: Host, journal: Journal) -> None:
    on = {"PD_MODE": "on", "DISAGG_TRANSFER_BACKEND": "nixl"}
    services: list[tuple[str, int, Callable[[ExitStack], Urls]]] = [
        ("PD 1+1", 2, partial(_ours, host, [on])),
        ("two unified replicas", 2, partial(_ours, host, [_replica(host, i) for i in (0, 1)])),
        ("SGLang PD 1+1 and router", 2, partial(_sglang, host)),
        ("one unified engine", 1, partial(_ours, host, [_replica(host, 0)])),
    ]
    if not host.dry_run:  # engines on a CPU have TP 1
        services.insert(2, ("one engine, TP 2", 2, partial(_ours, host, [{"TP_SIZE": "2"}])))
    for name, gpus, start in services:
        journal.part(name, partial(_measured, host, start), gpus=gpus)


def _replica(host: Host, gpu: int) -> dict[str, str]:
    own = {} if host.dry_run else {"CUDA_VISIBLE_DEVICES": str(gpu)}
    return {"PD_MODE": "off"} | own


def _ours(host: Host, replicas: list[dict[str, str]], stack: ExitStack) -> Urls:
    """Start `server.py` for each replica, at the same time; return their addresses."""
    common = {
        "DEVICE": host.device,
        "MODEL_PATH": str(host.big_model()),
        "ENGINE_ARGS": json.dumps(host.settings(**DUMMY)["engine_args"]),
        "MAX_INFLIGHT": "1024",
    }
    servers = [
        ServerProcess(host.folder / f"server-{i}.log", **common | own)
        for i, own in enumerate(replicas)
    ]
    with ThreadPoolExecutor(len(servers)) as pool:
        for started in [pool.submit(stack.enter_context, server) for server in servers]:
            started.result()
    return [server.url for server in servers]


def _sglang(host: Host, stack: ExitStack) -> Urls:
    args = host.settings(**DUMMY)["engine_args"]
    pair: AbstractContextManager[str] = SGLangPair(host.folder, host.big_model(), args, host.device)
    return [stack.enter_context(pair)]


def _measured(host: Host, start: Callable[[ExitStack], Urls]) -> Found:
    with ExitStack() as stack:
        began = time.monotonic()
        urls = start(stack)
        found: Found = {"servers": len(urls), "ready_s": round(time.monotonic() - began, 1)}
        for mix in DRY if host.dry_run else (CHAT, LONG):
            asyncio.run(_at_rate(urls, mix, 2.0, 1.0))  # warm-up
            found[mix.name] = [
                asyncio.run(_at_rate(urls, mix, rate, 2.0 if host.dry_run else SECONDS))
                for rate in mix.rates
            ]
        return found


@dataclass
class Outcome:
    """What the client saw of one request."""

    first_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    took_s: float = 0.0
    error: str | None = None

    def within_level(self, mix: Mix) -> bool:
        mean = sum(self.gaps_s) / max(1, mix.new_tokens - 1)
        return self.error is None and self.first_s <= mix.first_s and mean <= mix.gap_s


async def _at_rate(urls: Urls, mix: Mix, rate: float, seconds: float) -> Found:
    """Offer Poisson arrivals at `rate` requests/s for `seconds`, whatever is still open."""
    draw = random.Random(f"{mix.name} {rate}")
    prompts = texts(draw, mix, max(1, round(rate * seconds)))
    connector = aiohttp.TCPConnector(limit=0)
    limit = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=connector, timeout=limit) as session:
        began = time.monotonic()
        asking = []
        for number, text in enumerate(prompts):
            url = urls[number % len(urls)]
            asking.append(asyncio.create_task(ask(session, url, text, mix)))
            await asyncio.sleep(draw.expovariate(rate))
        outcomes = await asyncio.gather(*asking)
        took_s = time.monotonic() - began
    return _summary(outcomes, mix, rate, took_s)


def _summary(outcomes: list[Outcome], mix: Mix, rate: float, took_s: float) -> Found:
    completed = [one for one in outcomes if one.error is None]
    good = sum(one.within_level(mix) for one in outcomes)
    return {
        "offered_per_s": rate,
        "offered": len(outcomes),
        "completed": len(completed),
        "errors": sorted({one.error for one in outcomes if one.error})[:5],
        "seconds": round(took_s, 2),
        "completed_per_s": round(len(completed) / took_s, 3),
        "goodput_per_s": round(good / took_s, 3),
        "level": {"first_s": mix.first_s, "mean_gap_s": mix.gap_s},
        "first_token_s": percentiles([one.first_s for one in completed]),
        "gap_s": percentiles([gap for one in completed for gap in one.gaps_s]),
        "whole_s": percentiles([one.took_s for one in completed]),
    }


def texts(draw: random.Random, mix: Mix, count: int) -> list[str]:
    tokenizer = load_tokenizer({"model_path": str(demo.model_dir())})
    return [
        tokenizer.decode([draw.randrange(1000, 40000) for _ in range(mix.prompt_tokens)])
        for _ in range(count)
    ]


async def ask(
    session: aiohttp.ClientSession, url: str, prompt: str | list[int], mix: Mix
) -> Outcome:
    """Send a text, or token ids, and return what came of it."""
    body = {
        "model": "default",
        "prompt": prompt,
        "max_tokens": mix.new_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    outcome, began = Outcome(), time.monotonic()
    try:
        async with session.post(f"{url}/v1/completions", json=body) as response:
            if response.status != 200:
                outcome.error = f"{response.status}: {(await response.text())[:200]}"
                return outcome
            await _read(response, outcome, began)
    except (aiohttp.ClientError, TimeoutError) as error:
        outcome.error = f"{type(error).__name__}: {error}"[:200]
    return outcome


async def _read(response: aiohttp.ClientResponse, outcome: Outcome, began: float) -> None:
    last = began
    async for line in response.content:
        if not line.startswith(b"data: {"):
            continue
        if b'"error"' in line[:12]:
            outcome.error = line.decode()[:200]
        now = time.monotonic()
        if outcome.first_s:
            outcome.gaps_s.append(now - last)
        else:
            outcome.first_s = now - began
        last = now
    outcome.took_s = time.monotonic() - began
