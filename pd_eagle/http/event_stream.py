"""A response of server-sent events, whose status the first event decides.

It knows neither routes nor what the events say.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING

from starlette.responses import StreamingResponse

from pd_eagle.errors import PdEagleError
from pd_eagle.http.disconnect import receive_disconnect
from pd_eagle.http.error_responses import internal_error
from pd_eagle.http.error_shapes import event_of
from pd_eagle.http.keep_alive import KeepAlive

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine
    from contextlib import ExitStack

    from starlette.types import Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

#: In a request's scope: `send` as the server gave it, without Starlette's wrappers.
RAW_SEND = "pd_eagle.send"


class EventStream(StreamingResponse):
    """Server-sent events. When the response ends, `events` and `admission` are closed.

    An error before the first event is an ordinary error response; after it, one error event.
    """

    def __init__(
        self, events: AsyncGenerator[str, None], admission: ExitStack, keep_alive_s: float
    ) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._keep_alive_s = keep_alive_s
        self._events = events
        self._admission = admission
        self.headers["cache-control"] = "no-cache"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._admission:
            self._path = scope["path"]
            sending = self._send_events(send, scope[RAW_SEND])
            await self._send_unless_disconnected(receive, sending)

    async def _send_unless_disconnected(
        self, receive: Receive, events: Coroutine[None, None, None]
    ) -> None:
        # The body has been read, so all that can still be received is the disconnect.
        sending = asyncio.create_task(events)
        gone = asyncio.create_task(receive_disconnect(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not sending.done():
                sending.cancel()  # also when it is blocked in send
            await asyncio.wait({sending, gone})
        if not sending.cancelled():
            sending.result()

    async def _send_events(self, start: Send, send: Send) -> None:
        """Start the response with `start`, which Starlette wraps to know that it has begun; send
        the events with `send`, without those wrappers' cost for every token.
        """
        async with aclosing(self._events):
            first = await anext(self._events)
            await start({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send(_piece(first))
            try:
                with KeepAlive(send, self._keep_alive_s) as alive:
                    async for event in self._events:
                        alive.sent += 1
                        await send(_piece(event))
            except PdEagleError as error:
                await self._send_error(send, error)
            except Exception as error:
                logger.exception("a stream failed")
                await self._send_error(send, internal_error(error))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_error(self, send: Send, error: PdEagleError) -> None:
        await send(_piece(event_of(self._path, error)))


def _piece(event: str) -> Message:
    return {"type": "http.response.body", "body": event.encode(), "more_body": True}
