"""Results from the front's loop to a consumer in another thread, or in another loop.

Unbounded for one request, whose answer is bounded and which must not keep its place in the engines
while the consumer pauses. For a batch the producer waits until the consumer has caught up. It does
not know what it carries.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from pd_eagle.errors import NotServing

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator

_END = object()
#: Results of a batch that may be buffered.
_MOST_BUFFERED = 256


class Relay:
    """One producer in the loop that runs `feed`, one consumer elsewhere: `drain` or `adrain`."""

    def __init__(self, check: Callable[[], None], *, bounded: bool) -> None:
        """`check` raises where no results can arrive: in a forked child."""
        self._check = check
        self._bounded = bounded
        self._loop: asyncio.AbstractEventLoop | None = None
        self._put: Callable[[Any], None]
        self._given = self._taken = 0  # each written by one side alone
        self._caught_up: asyncio.Event

    async def feed(self, results: AsyncGenerator[Any, None]) -> None:
        """Pass on all of `results`, then how they ended."""
        self._caught_up = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        last: Any = _END
        try:
            async with aclosing(results):
                async for result in results:
                    self._put(result)
                    self._given += 1
                    if self._bounded:
                        await self._until_caught_up()
        except Exception as error:
            last = error
        except asyncio.CancelledError:
            last = NotServing("this PDEngine has been shut down")
            raise
        finally:
            self._put(last)

    async def _until_caught_up(self) -> None:
        while self._given - self._taken >= _MOST_BUFFERED:
            self._caught_up.clear()
            if self._given - self._taken >= _MOST_BUFFERED:  # else it was taken just now
                await self._caught_up.wait()

    def _end(self, end: Callable[[], object]) -> None:
        with contextlib.suppress(NotServing):
            self._check()
            end()

    def _take(self, item: Any) -> Any:
        if isinstance(item, BaseException):
            raise item
        self._taken += 1
        if self._bounded and self._given - self._taken == _MOST_BUFFERED // 2:
            assert self._loop is not None
            with contextlib.suppress(RuntimeError):  # the loop was closed: no more results arrive
                self._loop.call_soon_threadsafe(self._caught_up.set)
        return item

    def drain(self, begin: Callable[[], Callable[[], object]]) -> Iterator[Any]:
        """Yield the results in this thread. `begin` starts `feed` and returns what ends it."""
        items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._put = items.put
        end = begin()
        try:
            while (item := items.get()) is not _END:
                yield self._take(item)
                self._check()
        finally:
            self._end(end)

    async def adrain(self, begin: Callable[[], Callable[[], object]]) -> AsyncIterator[Any]:
        """Yield the results in the running loop, as `drain` does."""
        items: asyncio.Queue[Any] = asyncio.Queue()
        here = asyncio.get_running_loop()

        def put(item: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the caller's loop was closed: no one reads
                here.call_soon_threadsafe(items.put_nowait, item)

        self._put = put
        end = begin()
        try:
            while (item := await items.get()) is not _END:
                yield self._take(item)
                self._check()
        finally:
            self._end(end)
