"""Messages over one stream socket: length-prefixed frames, many messages a frame.

What is sent during one iteration of the event loop leaves as one frame at its end. It does not know
what the messages mean, nor what to do when the other side is gone: it reports that once.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import msgspec

from pd_eagle.workers import frames
from pd_eagle.workers.frames import MAX_FRAME_BYTES

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

_encoder = msgspec.msgpack.Encoder()
# What msgspec 0.21 raises for a value that MessagePack cannot carry: an integer over 64 bits, a
# foreign type, a lone surrogate (a ValueError), a structure nested too deep.
_UNENCODABLE = (OverflowError, TypeError, ValueError, RecursionError, msgspec.MsgspecError)

Incoming = TypeVar("Incoming")

logger = logging.getLogger(__name__)


def _log_unsendable(message: Any, why: str) -> None:
    logger.error("a message of type %s is not sent: %s", type(message).__name__, why)


@dataclass(slots=True)
class Traffic:
    """Frames and bytes over a socket."""

    frames_sent: int = 0
    frames_received: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0


class Channel(asyncio.Protocol, Generic[Incoming]):
    """Both ends of the socket between front and worker.

    `on_message` is called for every message in order; `on_eof` once, when the other side is gone
    or has sent something that is not a frame of ours. `on_unsendable` gets a message that cannot be
    encoded, or is larger than a frame, and the reason; what it returns, if anything, is sent
    instead. `traffic`, if given, counts frames and bytes.
    """

    def __init__(
        self,
        incoming: Any,
        on_message: Callable[[Incoming], None],
        on_eof: Callable[[], None],
        on_unsendable: Callable[[Any, str], Any] | None = None,
        traffic: Traffic | None = None,
    ) -> None:
        self._decoder: msgspec.msgpack.Decoder[list[Incoming]] = msgspec.msgpack.Decoder(
            list[incoming]
        )
        self._on_message = on_message
        self._on_eof = on_eof
        self._on_unsendable = on_unsendable or _log_unsendable
        self._transport: asyncio.WriteTransport | None = None
        self._received = bytearray()
        self._outgoing: list[Any] = []
        self._flush_due = False
        self.traffic = traffic or Traffic()

    async def attach(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self, sock=sock)

    def send(self, message: Any) -> None:
        """Queue one message; it is sent with all others of this iteration of the event loop."""
        self._outgoing.append(message)
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        self._flush_due = False
        messages, self._outgoing = self._outgoing, []
        if not messages or self._transport is None or self._transport.is_closing():
            return  # nothing to send, or the other side is gone, which on_eof reports
        for body in self._bodies(messages):
            frame = frames.pack(body)
            self._transport.write(frame)
            self.traffic.frames_sent += 1
            self.traffic.bytes_sent += len(frame)

    def _bodies(self, messages: list[Any]) -> Iterator[bytes]:
        """Yield `messages` as one body, or as several where a message prevents that."""
        try:
            body = _encoder.encode(messages)
        except _UNENCODABLE as error:
            why = f"{type(error).__name__}: {error}"
        else:
            if len(body) <= MAX_FRAME_BYTES:
                yield body
                return
            why = f"it takes {len(body)} bytes: wanted at most {MAX_FRAME_BYTES}"
        half = len(messages) // 2
        if half:  # one bad message must not cost the others
            yield from self._bodies(messages[:half])
            yield from self._bodies(messages[half:])
        elif (instead := self._on_unsendable(messages[0], why)) is not None:
            yield _encoder.encode([instead])

    def close(self) -> None:
        """Send what is queued, then close; the rest goes out in the background."""
        self.flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once: what the other side has not read is dropped.

        After `close` a transport whose peer does not read keeps its descriptor in the event loop;
        closing the socket under it would hand that descriptor's number to somebody else.
        """
        self._outgoing.clear()
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        self.traffic.bytes_received += len(data)
        bodies = frames.split(self._received)
        self.traffic.frames_received += len(bodies)
        for message in [m for body in bodies for m in self._decoder.decode(body)]:
            self._on_message(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_eof()
