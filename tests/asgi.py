"""ASGI driven by hand: one request against an application, message by message.

No test client shows what happens when a client goes away, or stops reading, at a chosen moment.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from starlette.types import ASGIApp, Message


@dataclass(slots=True)
class Answer:
    """What an application sent. `complete` is whether it said that this was all."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    chunks: list[bytes] = field(default_factory=list)
    complete: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    def json(self) -> Any:
        return json.loads(self.body)


class Exchange:
    """One request that runs until the block ends; leaving it hangs up.

    `body` comes in as many messages as it has parts; with `more`, another one is to follow.
    `next_message` waits for what the application sends; `hang_up` makes the client go away;
    `stop_reading` makes `send` block, as uvicorn's does for a client that does not read.
    """

    def __init__(
        self,
        app: ASGIApp,
        method: str,
        path: str,
        *,
        body: bytes | list[bytes] = b"",
        headers: Mapping[str, str] | None = None,
        more: bool = False,
    ) -> None:
        self._app = app
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        self._incoming: asyncio.Queue[Message] = asyncio.Queue()
        parts = [body] if isinstance(body, bytes) else body
        for left, part in zip(range(len(parts) - 1, -1, -1), parts, strict=True):
            message = {"type": "http.request", "body": part, "more_body": bool(left) or more}
            self._incoming.put_nowait(message)
        self._sent: asyncio.Queue[Message] = asyncio.Queue()
        self._may_send: int | None = None
        self.blocked = asyncio.Event()
        self.sent = 0
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        self._task = asyncio.ensure_future(self._app(self._scope, self._receive, self._send))

    async def __aenter__(self) -> Self:
        await self.begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._task is not None
        if error is None:
            await self.end()
        else:
            self._task.cancel()

    @property
    def unread(self) -> int:
        """How many messages the application has not received."""
        return self._incoming.qsize()

    async def _receive(self) -> Message:
        return await self._incoming.get()

    async def _send(self, message: Message) -> None:
        if self._may_send == 0:
            self.blocked.set()
            await asyncio.Event().wait()
        if self._may_send is not None:
            self._may_send -= 1
        self._sent.put_nowait(message)
        self.sent += 1

    def stop_reading(self, after: int = 0) -> None:
        """Let `send` block from now on, or after so many more messages."""
        self._may_send = after

    def hang_up(self) -> None:
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def next_message(self) -> Message:
        """Return what the application sends next; raise what it raised, if it ended instead."""
        assert self._task is not None
        getting = asyncio.create_task(self._sent.get())
        await asyncio.wait({getting, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if not getting.done():
            getting.cancel()
            self._task.result()
            raise AssertionError("the application ended without another message")
        return getting.result()

    async def end(self) -> None:
        """Hang up and wait until the application has ended; raises what it raised."""
        self.hang_up()
        assert self._task is not None
        await self._task

    async def rest(self) -> list[Message]:
        """Wait until the application has ended; return what it sent that was not taken yet."""
        assert self._task is not None
        await self._task
        return [self._sent.get_nowait() for _ in range(self._sent.qsize())]

    async def answer(self) -> Answer:
        """Return the whole answer."""
        start = await self.next_message()
        assert start["type"] == "http.response.start"
        headers = {k.decode().lower(): v.decode() for k, v in start["headers"]}
        answer = Answer(start["status"], headers)
        while not answer.complete:
            message = await self.next_message()
            if chunk := message.get("body", b""):
                answer.chunks.append(chunk)
            answer.complete = not message.get("more_body", False)
        return answer


async def call(
    app: ASGIApp,
    method: str,
    path: str,
    *,
    json_body: object = None,
    body: bytes | list[bytes] = b"",
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Return the application's whole answer to one request."""
    if json_body is not None:
        body = json.dumps(json_body).encode()
    async with Exchange(app, method, path, body=body, headers=headers) as exchange:
        return await exchange.answer()
