"""Requests take turns at the door, so that in a burst the loop comes round to everything else.

A thousand that arrive together would all be read and refused in one turn of the loop, and whoever
asks meanwhile whether the server lives would wait for that. It does not know what is asked.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


class Turns:
    """ASGI middleware: lets `a_turn` requests in with each turn of the loop, first come first.

    Paths below one of `at_once` do not wait.
    """

    def __init__(self, app: ASGIApp, a_turn: int, at_once: str) -> None:
        self._app = app
        self._a_turn = self._left = a_turn
        self._at_once = at_once
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._turning = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope["path"].startswith(self._at_once):
            await self._turn()
        await self._app(scope, receive, send)

    async def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        if not self._turning:
            self._turning = True
            loop.call_soon(self._next, loop)
        if self._left:
            self._left -= 1
            return
        mine = loop.create_future()
        self._waiting.append(mine)
        await mine

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        self._left = self._a_turn
        while self._waiting and self._left:
            waiting = self._waiting.popleft()
            if not waiting.done():  # else its client is gone
                waiting.set_result(None)
                self._left -= 1
        self._turning = self._left < self._a_turn
        if self._turning:
            loop.call_soon(self._next, loop)
