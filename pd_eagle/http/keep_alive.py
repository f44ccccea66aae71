"""Sends SSE comments while a stream has no events, so that the connection stays open.

Proxies and clients close a connection on which nothing comes for long, e.g. while a dead worker
restarts. It does not know what the stream carries.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from starlette.types import Message, Send

#: A line that begins with a colon, which SSE clients ignore (HTML standard, 9.2.6).
COMMENT: Message = {"type": "http.response.body", "body": b": keep-alive\n\n", "more_body": True}


class KeepAlive:
    """Sends a comment by `send` before `interval_s` have passed in silence; 0 sends none.

    The sender of events counts them in `sent`. Nothing is sent after the end of the `with` block.
    """

    def __init__(self, send: Send, interval_s: float) -> None:
        self.sent = 0
        self._send = send
        self._tick_s = interval_s / 2
        self._sent_before = 0
        self._timer: asyncio.TimerHandle | None = None
        self._comment: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        if self._tick_s:
            self._set_timer()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._comment is not None:
            self._comment.cancel()

    def _set_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._tick_s, self._tick)

    def _tick(self) -> None:
        # One comment at a time: sending blocks while the client does not read.
        if self.sent == self._sent_before and (self._comment is None or self._comment.done()):
            self._comment = asyncio.ensure_future(self._send_comment())
        self._sent_before = self.sent
        self._set_timer()

    async def _send_comment(self) -> None:
        try:
            await self._send(COMMENT)
        except OSError:  # the client has disconnected, which the stream notices too
            return
