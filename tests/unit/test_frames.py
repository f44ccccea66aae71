"""Frames without an event loop: what is sent is received, and what is cut off is said."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from pd_eagle.messages import Ping
from pd_eagle.workers import frames

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def test_what_is_sent_is_received(ends: tuple[socket.socket, socket.socket]) -> None:
    for seq in (1, 2**40):
        frames.send(ends[0], Ping(seq))
    assert [frames.receive(ends[1], Ping) for _ in range(2)] == [Ping(1), Ping(2**40)]


@pytest.mark.parametrize("received", [b"", b"\0\0", b"\0\0\0\2x"])
def test_a_frame_that_is_cut_off_is_an_error(
    ends: tuple[socket.socket, socket.socket], received: bytes
) -> None:
    ends[0].sendall(received)
    ends[0].close()
    with pytest.raises(EOFError, match=r"closed after \d of \d bytes"):
        frames.receive(ends[1], Ping)


def test_an_incomplete_frame_stays() -> None:
    received = bytearray(frames.pack(b"ab") + frames.pack(b"") + frames.pack(b"cd")[:5])
    assert frames.split(received) == [b"ab", b""]
    assert received == frames.pack(b"cd")[:5]


def test_a_length_that_is_no_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="4294967295 bytes: not one of ours"):
        frames.split(bytearray(b"\xff\xff\xff\xff"))
