# ruff: noqa: T201, ASYNC110 - a notebook prints, and waits as people wait
"""What a notebook's cells do, run as a notebook runs them: in a loop that is already running."""

from __future__ import annotations

import asyncio
import itertools

from pd_eagle import PdEagleError, PDEngine

CHAT = [{"role": "user", "content": "What is the capital of France? Answer briefly."}]
GREEDY = {"temperature": 0, "max_new_tokens": 12}


async def cells() -> None:
    engine = PDEngine()  # a blocking cell
    print(engine.plan)
    assert engine.plan.mode == "pd"
    assert "Paris" in engine.generate("The capital of France is", GREEDY)["text"]

    answer = await engine.async_generate(messages=CHAT, sampling_params=GREEDY)
    assert answer["text"] == "The capital of France is Paris."
    assert answer["meta_info"]["prompt_tokens"] == 40

    seen = [chunk["text"] async for chunk in await engine.async_generate("A", GREEDY, stream=True)]
    assert len(seen) >= 2
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(seen))

    both = engine.generate(["The capital of France is", "The capital of Italy is"], GREEDY)
    assert "Paris" in both[0]["text"]
    assert "Rome" in both[1]["text"]

    last: dict[int, str] = {}
    for chunk in engine.generate(["A", "B"], GREEDY, stream=True):
        last[chunk["index"]] = chunk["text"]
    assert sorted(last) == [0, 1]

    stream = await engine.async_generate("A", {"max_new_tokens": 4000}, stream=True)
    async for _ in stream:
        break
    await stream.aclose()
    while engine.health()["inflight"]:  # closing is the abort
        await asyncio.sleep(0.01)

    second = PDEngine(pd_mode="off")
    assert second.plan.mode == "unified"
    again = await second.async_generate(messages=CHAT, sampling_params=GREEDY)
    assert again["text"] == answer["text"]
    second.shutdown()

    for wrong in ({"temperature": -1}, {"max_new_tokens": 10**9}):
        try:
            engine.generate("A", wrong)
        except PdEagleError as error:
            print("refused:", error)
        else:
            raise AssertionError(wrong)
    assert engine.shutdown(drain=True)
    assert engine.shutdown()
    print("all cells ran")


if __name__ == "__main__":
    asyncio.run(cells())
