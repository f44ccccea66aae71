"""Lets a few requests in per iteration of the event loop, so that a burst does not block the rest.

A thousand requests that arrive together would all be read and refused in one iteration, and a
health check would wait for that. It does not know what the requests are.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


class Pacing:
    """ASGI middleware: lets `per_iteration` requests in per iteration of the loop, in FIFO order.

    Paths that begin with `exempt` do not wait.
    """

    def __init__(self, app: ASGIApp, per_iteration: int, exempt: str) -> None:
        self._app = app
        self._per_iteration = self._left = per_iteration
        self._exempt = exempt
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._scheduled = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope["path"].startswith(self._exempt):
            await self._wait()
        await self._app(scope, receive, send)

    async def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._next, loop)
        if self._left:
            self._left -= 1
            return
        admitted = loop.create_future()
        self._waiting.append(admitted)
        await admitted

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        self._left = self._per_iteration
        while self._waiting and self._left:
            admitted = self._waiting.popleft()
            if not admitted.done():  # else the request was cancelled
                admitted.set_result(None)
                self._left -= 1
        self._scheduled = self._left < self._per_iteration
        if self._scheduled:
            loop.call_soon(self._next, loop)
