"""PD gives exactly the unified engine's tokens, over both transfers, and every worker serves.

In float32: in bfloat16 exact ties and one-step differences of logits depend on the batch's shape.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from pd_eagle import PDEngine

NEW_TOKENS = 16
AT_A_TIME = 8


def prompts() -> list[list[int]]:
    """Return 33 prompts of 1 to 1,000 tokens, most of them with a prefix that others share."""
    draw = random.Random(20)
    shared = [draw.randrange(100, 40000) for _ in range(600)]
    lengths = [1, 2, 3, 5, 17, 64, 128, 255, 256, 257, 512, 999, 1000]
    own = [[draw.randrange(100, 40000) for _ in range(length)] for length in lengths]
    branches = [
        shared[: draw.randrange(1, 600)] + [draw.randrange(100, 40000) for _ in range(tail)]
        for tail in range(1, 40, 2)
    ]
    return own + branches


async def answers(engine: PDEngine) -> list[list[int]]:
    turn = asyncio.Semaphore(AT_A_TIME)

    async def answer(ids: list[int]) -> list[int]:
        async with turn:
            params = {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True}
            result = await engine.async_generate(input_ids=ids, sampling_params=params)
        assert result["meta_info"]["prompt_tokens"] == len(ids)
        output_ids: list[int] = result["output_ids"]
        assert len(output_ids) == NEW_TOKENS
        return output_ids

    return await asyncio.gather(*(answer(ids) for ids in prompts()))


@pytest.fixture(scope="module")
def unified() -> list[list[int]]:
    with PDEngine(pd_mode="off", engine_args={"dtype": "float32"}) as engine:
        assert [worker.role for worker in engine.plan.workers] == ["unified"]
        return asyncio.run(answers(engine))


SPLITS: dict[str, dict[str, Any]] = {
    "nixl, 1 prefill, 2 decode": {"disagg_transfer_backend": "nixl", "decode_replicas": 2},
    "mooncake, 2 prefill, 1 decode": {"disagg_transfer_backend": "mooncake", "prefill_replicas": 2},
}


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS.keys())
def test_same_tokens(unified: list[list[int]], split: dict[str, Any]) -> None:
    assert len(unified) == len(prompts()) >= 32
    with PDEngine(pd_mode="on", engine_args={"dtype": "float32"}, **split) as engine:
        found = asyncio.run(answers(engine))
        workers = engine.health()["workers"]
    assert found == unified
    assert len(workers) == 3
    served = {worker["name"]: worker["served"] for worker in workers}
    # In turn: each worker of a role gets its share. A prefill is counted unless decode, which can
    # end first, has closed the request by then.
    assert all(count >= len(unified) // 3 for count in served.values()), served
