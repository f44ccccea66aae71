"""Messages over one stream socket: length-prefixed frames, many messages a frame.

What is sent during one turn of the event loop leaves as one frame at its end. It does not know what
the messages mean, nor what to do when the other side is gone: it says so once.
"""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import msgspec

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

_LENGTH = struct.Struct("!I")
# Far above any real frame; a length beyond it is not one of ours.
_MAX_FRAME_BYTES = 2**28
_encoder = msgspec.msgpack.Encoder()

Incoming = TypeVar("Incoming")


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
    or has sent something that is not a frame of ours. `traffic` is counted on, if it is given.
    """

    def __init__(
        self,
        incoming: Any,
        on_message: Callable[[Incoming], None],
        on_eof: Callable[[], None],
        traffic: Traffic | None = None,
    ) -> None:
        self._decoder: msgspec.msgpack.Decoder[list[Incoming]] = msgspec.msgpack.Decoder(
            list[incoming]
        )
        self._on_message = on_message
        self._on_eof = on_eof
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
        """Queue one message; it leaves with all others of this turn of the loop."""
        self._outgoing.append(message)
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        self._flush_due = False
        if not self._outgoing:
            return
        body = _encoder.encode(self._outgoing)
        self._outgoing.clear()
        if self._transport is None or self._transport.is_closing():
            return  # the other side is gone; on_eof has said so
        self._transport.write(_LENGTH.pack(len(body)) + body)
        self.traffic.frames_sent += 1
        self.traffic.bytes_sent += len(body) + _LENGTH.size

    def close(self) -> None:
        self.flush()
        if self._transport is not None:
            self._transport.close()

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        self.traffic.bytes_received += len(data)
        for message in self._messages():
            self._on_message(message)

    def _messages(self) -> list[Incoming]:
        received, start, messages = self._received, 0, []
        while len(received) - start >= _LENGTH.size:
            size = _LENGTH.unpack_from(received, start)[0]
            if size > _MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {size} bytes: not one of ours")
            end = start + _LENGTH.size + size
            if len(received) < end:
                break
            self.traffic.frames_received += 1
            messages += self._decoder.decode(received[start + _LENGTH.size : end])
            start = end
        del received[:start]
        return messages

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_eof()
