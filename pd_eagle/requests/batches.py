"""The prompts of one call, run with bounded concurrency.

Prompts are read ahead of those that run, so that a bad one is reported before hours of work have
been put into the others; a failure of one ends the call. It does not know what a prompt is.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine

    #: Called with how many prompts have been answered, and of how many.
    Count = Callable[[int, int], None]


class HasIndex(Protocol):
    """A prompt, with its position in the call."""

    @property
    def index(self) -> int: ...


Part = TypeVar("Part", bound=HasIndex)


class Batch:
    """`total` parts, of which at most `width` run at a time."""

    def __init__(self, total: int, width: int, count: Count | None) -> None:
        self._total = total
        self._width = min(width, total)
        self._count = count
        self._answered = 0

    async def answers(
        self,
        parts: AsyncGenerator[Part, None],
        answer: Callable[[Part], Awaitable[dict[str, Any]]],
    ) -> list[dict[str, Any]]:
        """Return the answers to all `parts`, in their order."""
        answers: list[dict[str, Any]] = [{}] * self._total

        async def run(part: Part) -> None:
            answers[part.index] = await answer(part)

        await self._run(parts, run)
        return answers

    async def stream(
        self,
        parts: AsyncGenerator[Part, None],
        stream: Callable[[Part], AsyncGenerator[dict[str, Any], None]],
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield results of all `parts` as they come.

        A part has ended when its last result has been taken: a slow reader holds back those that
        have not begun, but none that runs.
        """
        results: asyncio.Queue[dict[str, Any] | asyncio.Event | None] = asyncio.Queue()

        async def run(part: Part) -> None:
            async with aclosing(stream(part)) as steps:
                async for step in steps:
                    results.put_nowait(step)
            all_taken = asyncio.Event()
            results.put_nowait(all_taken)
            await all_taken.wait()

        running = asyncio.create_task(self._run(parts, run))
        running.add_done_callback(lambda _: results.put_nowait(None))
        try:
            while (result := await results.get()) is not None:
                if isinstance(result, asyncio.Event):
                    result.set()
                else:
                    yield result
            await running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def _run(
        self,
        parts: AsyncGenerator[Part, None],
        run: Callable[[Part], Coroutine[Any, Any, None]],
    ) -> None:
        waiting: asyncio.Queue[Part | None] = asyncio.Queue()
        self._report(0)

        async def read() -> None:
            async with aclosing(parts):
                async for part in parts:
                    waiting.put_nowait(part)
            for _ in range(self._width):
                waiting.put_nowait(None)

        async def work() -> None:
            while (part := await waiting.get()) is not None:
                await run(part)
                self._report(1)

        await _all_or_none([read(), *(work() for _ in range(self._width))])

    def _report(self, more: int) -> None:
        self._answered += more
        if self._count is not None:
            self._count(self._answered, self._total)


async def _all_or_none(coroutines: list[Coroutine[Any, Any, None]]) -> None:
    """Run all; the first failure cancels the others before it is raised."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
