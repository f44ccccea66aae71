"""Frames on a stream socket: the length of a MessagePack body in four bytes, then the body.

It does not know what a body means. `send` and `receive` block: they are for a process whose event
loop does not run yet, and for a few hundred bytes into an empty socket buffer.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

if TYPE_CHECKING:
    import socket

Value = TypeVar("Value")

#: Far above any real frame. A single message beyond it is not sent; a received length beyond it is
#: not one of ours.
MAX_FRAME_BYTES = 2**26

_LENGTH = struct.Struct("!I")


def pack(body: bytes) -> bytes:
    """Return `body` as a frame."""
    return _LENGTH.pack(len(body)) + body


def split(received: bytearray) -> list[bytearray]:
    """Take the bodies of all complete frames out of `received`.

    Raises `ValueError` for a length that no frame of ours has.
    """
    start, bodies = 0, []
    while len(received) - start >= _LENGTH.size:
        size = _LENGTH.unpack_from(received, start)[0]
        if size > MAX_FRAME_BYTES:
            raise ValueError(f"a frame of {size} bytes: not one of ours")
        end = start + _LENGTH.size + size
        if len(received) < end:
            break
        bodies.append(received[start + _LENGTH.size : end])
        start = end
    del received[:start]
    return bodies


def send(sock: socket.socket, value: Any) -> None:
    sock.sendall(pack(msgspec.msgpack.encode(value)))


def receive(sock: socket.socket, kind: type[Value]) -> Value:
    """Wait for one frame. Raises `EOFError` when the other side closes before its end."""
    size = _LENGTH.unpack(_receive_exactly(sock, _LENGTH.size))[0]
    return msgspec.msgpack.decode(_receive_exactly(sock, size), type=kind)


def _receive_exactly(sock: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        chunk = sock.recv(size - len(received))
        if not chunk:
            raise EOFError(f"the socket was closed after {len(received)} of {size} bytes")
        received += chunk
    return received
