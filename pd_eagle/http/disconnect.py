"""Notices that a client has disconnected; does not know what it was waiting for."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from pd_eagle.errors import PdEagleError

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from starlette.types import Receive


async def receive_disconnect(receive: Receive) -> None:
    """Return when the client has disconnected; the request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_disconnected(work: Awaitable[bytes], receive: Receive) -> bytes | None:
    """Return the result of `work`; if the client disconnects first, cancel it and return None."""
    working = asyncio.ensure_future(work)
    gone = asyncio.create_task(receive_disconnect(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, gone):
            task.cancel()
            with suppress(asyncio.CancelledError, PdEagleError):
                await task
