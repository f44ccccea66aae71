"""The id of an HTTP request: the client's own or a new one; in the response and in log lines.

It does not know what is asked for.
"""

from __future__ import annotations

import re
import uuid
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADER = b"x-request-id"
#: Anthropic's clients read this one.
_NAMES = (_HEADER, b"request-id")
_TAKEN = re.compile(rb"[\x21-\x7e]{1,128}")
_current: ContextVar[str] = ContextVar("request_id", default="")


class RequestIds:
    """ASGI middleware: responses carry the request's `x-request-id`, or a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == _HEADER), b"")
        own = given if _TAKEN.fullmatch(given) else uuid.uuid4().hex.encode()
        _current.set(own.decode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *((n, own) for n in _NAMES)]
            await send(message)

        await self._app(scope, receive, send_with_id)


def mark(record: logging.LogRecord) -> bool:
    """Put the id of the request that `record` is about in it; for a handler's filters."""
    own = _current.get()
    record.request_id = f"[{own}] " if own else ""
    return True
