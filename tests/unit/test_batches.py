"""Parts of a call: how many run, in which order, and what a failure does to the others."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pd_eagle.errors import InvalidRequest
from pd_eagle.requests.batches import Batch

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


@dataclass
class Part:
    index: int


class Engine:
    """Answers a part with its index after as many turns of the loop; `bad` fails."""

    def __init__(self, bad: int | None = None) -> None:
        self.running = self.most = 0
        self.begun: list[int] = []
        self.ended: list[int] = []
        self._bad = bad

    async def answer(self, part: Part) -> dict[str, Any]:
        self.begun.append(part.index)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for _ in range(part.index % 5):
                await asyncio.sleep(0)
            if part.index == self._bad:
                raise InvalidRequest("bad")
            self.ended.append(part.index)
        finally:
            self.running -= 1
        return {"index": part.index}

    async def stream(self, part: Part) -> AsyncGenerator[dict[str, Any], None]:
        for _ in range(3):
            yield await self.answer(part)


async def parts(count: int) -> AsyncGenerator[Part, None]:
    for index in range(count):
        yield Part(index)


async def rest_of(results: AsyncGenerator[Any, None]) -> list[Any]:
    return [result async for result in results]


async def test_so_many_at_a_time_and_answers_in_order() -> None:
    engine, counted = Engine(), list[tuple[int, int]]()
    batch = Batch(20, 3, lambda *count: counted.append(count))
    answers = await batch.answers(parts(20), engine.answer)
    assert [answer["index"] for answer in answers] == list(range(20))
    assert engine.most == 3
    assert engine.begun == list(range(20))
    assert counted == [(n, 20) for n in range(21)]


async def test_a_failure_ends_the_others() -> None:
    engine = Engine(bad=3)
    with pytest.raises(InvalidRequest, match="bad"):
        await Batch(20, 4, None).answers(parts(20), engine.answer)
    assert engine.running == 0
    assert len(engine.begun) < 20


async def test_what_cannot_be_read_ends_those_that_run() -> None:
    async def unreadable() -> AsyncGenerator[Part, None]:
        yield Part(0)
        raise InvalidRequest("the second prompt")

    async def never(part: Part) -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    with pytest.raises(InvalidRequest, match="the second prompt"):
        await Batch(2, 2, None).answers(unreadable(), never)


async def test_a_reader_who_pauses_holds_back_those_that_have_not_begun() -> None:
    engine = Engine()
    results = Batch(20, 2, None).stream(parts(20), engine.stream)
    await anext(results)
    for _ in range(100):
        await asyncio.sleep(0)
    assert set(engine.begun) == {0, 1}
    assert engine.running == 0
    assert len(await rest_of(results)) == 3 * 20 - 1
    assert engine.most <= 2


async def test_a_stream_tells_a_failure_after_what_came_before_it() -> None:
    engine = Engine(bad=1)
    results = Batch(20, 2, None).stream(parts(20), engine.stream)
    assert [(await anext(results))["index"] for _ in range(2)] == [0, 0]
    with pytest.raises(InvalidRequest):
        await rest_of(results)
    assert engine.running == 0


async def test_leaving_a_stream_ends_what_runs() -> None:
    engine = Engine()
    results = Batch(20, 20, None).stream(parts(20), engine.stream)
    await anext(results)
    await results.aclose()
    assert engine.running == 0
