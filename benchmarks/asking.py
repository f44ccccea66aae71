"""Shared by the load generators: prompts for a `PDEngine`, request bodies, percentiles."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pd_eagle import PDEngine


@dataclass(frozen=True)
class Answers:
    """An engine's answers to a list of prompts, in the same order."""

    ids: list[list[int]]
    meta: list[dict[str, Any]]
    seconds: float

    @property
    def tokens(self) -> int:
        return sum(len(ids) for ids in self.ids)

    @property
    def tokens_per_verification(self) -> float | None:
        """Mean over all verifications; None without speculation."""
        verifications = sum(meta.get("spec_verify_ct") or 0 for meta in self.meta)
        return round(self.tokens / verifications, 4) if verifications else None

    def speed(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_s": round(self.tokens / self.seconds, 2),
            "tokens_per_verification": self.tokens_per_verification,
        }


def ask(
    engine: PDEngine,
    prompts: Sequence[list[int]],
    at_once: int,
    new_tokens: int,
    **options: Any,
) -> Answers:
    """Generate greedily for all `prompts` (token ids), `at_once` at a time."""

    async def one(slots: asyncio.Semaphore, ids: list[int]) -> dict[str, Any]:
        async with slots:
            result: dict[str, Any] = await engine.async_generate(
                input_ids=ids,
                sampling_params={"temperature": 0, "max_new_tokens": new_tokens},
                **options,
            )
            return result

    async def all_prompts() -> list[dict[str, Any]]:
        slots = asyncio.Semaphore(at_once)
        return await asyncio.gather(*(one(slots, ids) for ids in prompts))

    began = time.monotonic()
    results = asyncio.run(all_prompts())
    seconds = time.monotonic() - began
    return Answers([r["output_ids"] for r in results], [r["meta_info"] for r in results], seconds)


CHAT = "/v1/chat/completions"


def chat_body(prompt: str, new_tokens: int, *, stream: bool = True) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": new_tokens,
        "ignore_eos": True,
        "stream": stream,
    }


def percentiles(values: list[float]) -> dict[str, float]:
    """Return median, 95th and 99th percentile, and maximum."""
    if len(values) < 2:
        return {"max": round(max(values, default=0.0), 3)}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    places = {"p50": 49, "p95": 94, "p99": 98}
    found = {name: round(cuts[place], 3) for name, place in places.items()}
    return found | {"max": round(max(values), 3)}
