"""uvicorn's HTTP/1.1 protocol with limits on clients that send slowly, too much, or nothing.

Headers and bodies have a timeout, headers a maximum size, and there are never more connections than
file descriptors: a new one closes the one idle longest. It does not know the requests.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    import asyncio

# File descriptors of the front itself, and of each worker: pipe, sockets, pidfds.
_OWN_DESCRIPTORS = 32
_DESCRIPTORS_A_WORKER = 12
_FEWEST_CONNECTIONS = 4


def raise_descriptor_limit() -> int:
    """Raise the soft limit of file descriptors to the hard one; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def connections_for(descriptors: int, workers: int) -> int:
    """Return how many connections fit beside the descriptors that front and workers need."""
    own = _OWN_DESCRIPTORS + workers * _DESCRIPTORS_A_WORKER
    return max(_FEWEST_CONNECTIONS, descriptors - own)


@dataclass(slots=True)
class ClientLimits:
    """`headers_s` is the timeout for a request's headers, `body_s` for its body."""

    headers_s: float
    body_s: float
    headers_bytes: int
    connections: int
    idle: dict[BoundedProtocol, None] = field(default_factory=dict)


class BoundedProtocol(HttpToolsProtocol):
    """One connection; all connections share `limits`."""

    def __init__(self, *args: Any, limits: ClientLimits, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._deadline: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._in_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            oldest = next(iter(self._limits.idle), self)
            oldest.transport.abort()
            oldest._leave()
            if oldest is self:
                return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > self._limits.headers_bytes:
            self._refuse("431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._limits.idle.pop(self, None)
        self._within(self._limits.body_s)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._within(None)
        self._in_head, self._head_bytes = True, 0

    def _await_head(self) -> None:
        self._in_head = True
        self._limits.idle[self] = None
        self._within(self._limits.headers_s)

    def _within(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None
        if seconds is not None:
            self._deadline = self.loop.call_later(seconds, self._refuse, "408 Request Timeout")

    def _refuse(self, status: str) -> None:
        self._leave()
        if not self.transport.is_closing():
            started = self.cycle is not None and self.cycle.response_started
            if not started or self.cycle.response_complete:
                head = f"HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                self.transport.write(head.encode())
            self.transport.close()

    def _leave(self) -> None:
        self._within(None)
        self._limits.idle.pop(self, None)
