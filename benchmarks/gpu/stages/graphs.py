"""Start-up cost and later gain of choices of CUDA graph sizes; the big shape."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import statistics
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.host import DUMMY, Host
from benchmarks.gpu.stages.start import Phases

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.gpu.journal import Found, Journal
    from pd_eagle import PDEngine

FEW_PREFILL = [16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
FEW_DECODE = [1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 224, 256]
# Without a largest size the package's own choice would apply.
CHOICES: dict[str, dict[str, Any]] = {
    "SGLang's own": {"cuda_graph_max_bs_prefill": 8192, "cuda_graph_max_bs_decode": 256},
    "few": {"cuda_graph_bs_prefill": FEW_PREFILL, "cuda_graph_bs_decode": FEW_DECODE},
    "few for decode, none for prefill": {
        "disable_prefill_cuda_graph": True,
        "cuda_graph_bs_decode": FEW_DECODE,
    },
}
PROMPT_TOKENS = (20, 140, 300, 450, 600, 900, 1500, 3000, 6000)
AT_ONCE = (1, 9, 20, 41, 65, 104)
EAGLE_CHOICES: dict[str, dict[str, Any]] = {
    "EAGLE, SGLang's own": {"cuda_graph_max_bs_decode": 256},
    "EAGLE, few": {"cuda_graph_bs_decode": FEW_DECODE},
}


def run(host: Host, journal: Journal) -> None:
    base = {"model_path": str(host.big_model()), "pd_mode": "off"}
    pool = {} if host.dry_run else {"max_total_tokens": 150_000}
    own = {"chunked_prefill_size": 8192, "enable_mixed_chunk": False}
    for name, choice in CHOICES.items():
        settings = base | {"engine_args": DUMMY | pool | own | choice}
        journal.part(name, partial(_measure, host, settings))
    draft = host.eagle((3, 1, 4), str(host.big_draft()))
    for name, choice in EAGLE_CHOICES.items():
        more = {"max_running_requests": 256} | choice
        settings = base | draft | {"engine_args": DUMMY | pool | own | more}
        journal.part(name, partial(_measure, host, settings))


def _measure(host: Host, settings: dict[str, Any]) -> Found:
    phases = Phases()
    logging.getLogger().addHandler(phases)
    draw = random.Random(7)
    lengths, at_once = ((20, 70), (1, 2)) if host.dry_run else (PROMPT_TOKENS, AT_ONCE)
    try:
        with host.start(**settings) as engine:
            found: Found = {"ready_s": round(phases.elapsed(), 2), "start": phases.seen}
            for repeat in range(2):  # the first compiles kernels that only real batches need
                found |= {
                    "first_token_ms": {n: _first_token_ms(engine, draw, n) for n in lengths},
                    "burst_of_64_s": _burst_s(engine, draw, 64 if not host.dry_run else 4),
                    "gap_ms": {n: _gap_ms(engine, draw, n) for n in at_once},
                    "repeat": repeat,
                }
            return found
    finally:
        logging.getLogger().removeHandler(phases)


def _prompt(draw: random.Random, tokens: int) -> list[int]:
    return [draw.randrange(100, 40_000) for _ in range(tokens)]


async def _stream(engine: PDEngine, ids: list[int], new_tokens: int) -> list[float]:
    """Return the seconds before each token, the first since the call."""
    began = time.monotonic()
    params = {"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True}
    stream = await engine.async_generate(input_ids=ids, sampling_params=params, stream=True)
    times = [time.monotonic() async for _ in stream]
    return [b - a for a, b in itertools.pairwise([began, *times])]


async def _streams(engine: PDEngine, prompts: list[list[int]], new_tokens: int) -> Any:
    return await asyncio.gather(*(_stream(engine, ids, new_tokens) for ids in prompts))


def _first_token_ms(engine: PDEngine, draw: random.Random, tokens: int) -> float:
    def times() -> Iterator[float]:
        for _ in range(5):
            yield asyncio.run(_stream(engine, _prompt(draw, tokens), 1))[0]

    return round(1000 * statistics.median(times()), 2)


def _burst_s(engine: PDEngine, draw: random.Random, count: int) -> float:
    """Return the seconds that `count` concurrent prompts of 300 tokens take to one token each."""
    prompts = [_prompt(draw, 300) for _ in range(count)]
    began = time.monotonic()
    asyncio.run(_streams(engine, prompts, 1))
    return round(time.monotonic() - began, 3)


def _gap_ms(engine: PDEngine, draw: random.Random, at_once: int) -> float:
    """Return the median gap between tokens, with `at_once` concurrent answers of 64 tokens."""
    prompts = [_prompt(draw, 32) for _ in range(at_once)]
    found = asyncio.run(_streams(engine, prompts, 64))
    median_s = statistics.median(gap for gaps in found for gap in gaps[8:])
    return round(1000 * float(median_s), 3)
