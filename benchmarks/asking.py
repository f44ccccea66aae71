"""Asks a `PDEngine` a list of prompts, so many at a time."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pd_eagle import PDEngine


@dataclass(frozen=True)
class Answers:
    """What an engine answered to a list of prompts, in their order."""

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


def ask(
    engine: PDEngine,
    prompts: Sequence[list[int]],
    at_once: int,
    new_tokens: int,
    **options: Any,
) -> Answers:
    """Ask all `prompts` (token ids), `at_once` at a time, greedily."""

    async def one(turn: asyncio.Semaphore, ids: list[int]) -> dict[str, Any]:
        async with turn:
            result: dict[str, Any] = await engine.async_generate(
                input_ids=ids,
                sampling_params={"temperature": 0, "max_new_tokens": new_tokens},
                **options,
            )
            return result

    async def everyone() -> list[dict[str, Any]]:
        turn = asyncio.Semaphore(at_once)
        return await asyncio.gather(*(one(turn, ids) for ids in prompts))

    began = time.monotonic()
    results = asyncio.run(everyone())
    seconds = time.monotonic() - began
    return Answers([r["output_ids"] for r in results], [r["meta_info"] for r in results], seconds)
