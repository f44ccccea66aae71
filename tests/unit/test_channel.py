"""The channel: frames cut anywhere, many messages a frame, one end said once."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_eagle.messages import Abort, Delta, Failed, FromWorker, Ping, Pong, Stop, ToWorker
from pd_eagle.workers.channel import Channel
from pd_eagle.workers.frames import MAX_FRAME_BYTES

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator


def frame(*messages: Any) -> bytes:
    body = msgspec.msgpack.encode(list(messages))
    return struct.pack("!I", len(body)) + body


class End:
    """One end of a channel, and what it has heard."""

    def __init__(self, union: Any) -> None:
        self.heard: list[Any] = []
        self.gone = asyncio.Event()
        self.goodbyes = 0
        self._more = asyncio.Event()
        self.unsendable: list[tuple[Any, str]] = []
        self.instead: Any = None
        self.channel: Channel[Any] = Channel(union, self._hear, self._end, self._not_sent)

    def _hear(self, message: Any) -> None:
        self.heard.append(message)
        self._more.set()

    def _not_sent(self, message: Any, why: str) -> Any:
        self.unsendable.append((message, why))
        return self.instead

    def _end(self) -> None:
        self.goodbyes += 1
        self.gone.set()

    async def hears(self, count: int) -> list[Any]:
        while len(self.heard) < count:
            self._more.clear()
            await self._more.wait()
        return self.heard


STREAM = [Abort("a"), Ping(1), Stop(), Abort("b" * 300), Ping(2**40)]
BYTES = frame(STREAM[0]) + frame(*STREAM[1:3]) + frame() + frame(*STREAM[3:])


async def test_frames_may_be_split_at_every_byte() -> None:
    for cut in range(len(BYTES) + 1):
        end = End(ToWorker)
        end.channel.data_received(BYTES[:cut])
        end.channel.data_received(BYTES[cut:])
        assert end.heard == STREAM


async def test_frames_may_come_byte_by_byte() -> None:
    end = End(ToWorker)
    for i in range(len(BYTES)):
        end.channel.data_received(BYTES[i : i + 1])
    assert end.heard == STREAM


@given(st.lists(st.binary(max_size=50), max_size=20), st.randoms(use_true_random=False))
def test_any_messages_in_any_pieces(texts: list[bytes], pieces: random.Random) -> None:
    async def run() -> None:
        messages = [Abort(text.hex()) for text in texts]
        data = b"".join(frame(*messages[i : i + 3]) for i in range(0, len(messages), 3))
        end = End(ToWorker)
        while data:
            cut = pieces.randint(1, len(data))
            end.channel.data_received(data[:cut])
            data = data[cut:]
        assert end.heard == messages

    asyncio.run(run())


@pytest.fixture
async def ends() -> AsyncIterator[tuple[End, End]]:
    ours, theirs = socket.socketpair()
    front, worker = End(FromWorker), End(ToWorker)
    await front.channel.attach(ours)
    await worker.channel.attach(theirs)
    yield front, worker
    for end in (front, worker):
        end.channel.close()
        await end.gone.wait()


async def test_what_is_sent_in_one_turn_is_one_frame(ends: tuple[End, End]) -> None:
    front, worker = ends
    for n in range(100):
        front.channel.send(Ping(n))
    assert front.channel.traffic.frames_sent == 0
    assert await worker.hears(100) == [Ping(n) for n in range(100)]
    assert front.channel.traffic.frames_sent == 1
    front.channel.send(Stop())
    await worker.hears(101)
    assert front.channel.traffic.frames_sent == 2


async def test_both_directions_keep_their_order(ends: tuple[End, End]) -> None:
    front, worker = ends
    deltas = [Delta("r", "x" * n, [n], {}, False) for n in range(500)]
    for n, delta in enumerate(deltas):
        front.channel.send(Ping(n))
        worker.channel.send(delta)
        if n % 7 == 0:
            await asyncio.sleep(0)
    assert await worker.hears(500) == [Ping(n) for n in range(500)]
    assert await front.hears(500) == deltas


async def test_a_message_larger_than_any_buffer_arrives(ends: tuple[End, End]) -> None:
    front, worker = ends
    large = Delta("r", "", list(range(2_000_000)), {}, False)
    worker.channel.send(large)
    assert await front.hears(1) == [large]
    assert worker.channel.traffic.bytes_sent > 2_000_000


UNSENDABLE = {
    "an integer over 64 bits": 2**64,
    "a negative integer over 64 bits": -(2**63) - 1,
    "a foreign type": object(),
    "a lone surrogate": "\ud800",
    "what contains itself": [],
    "what is too large": "x" * (MAX_FRAME_BYTES + 1),
}
UNSENDABLE["what contains itself"].append(UNSENDABLE["what contains itself"])  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", UNSENDABLE)
async def test_what_cannot_be_sent_costs_no_other_message(ends: tuple[End, End], name: str) -> None:
    front, worker = ends
    bad = Delta("bad", "", [], {"value": UNSENDABLE[name]}, False)
    worker.instead = Failed("bad", "engine_error", "it cannot be sent")
    for message in (Pong(1, None), bad, Pong(2, None), Pong(3, None)):
        worker.channel.send(message)
    assert await front.hears(4) == [Pong(1, None), worker.instead, Pong(2, None), Pong(3, None)]
    assert [message for message, _ in worker.unsendable] == [bad]
    worker.channel.send(Pong(4, None))
    assert (await front.hears(5))[4] == Pong(4, None)


async def test_messages_that_are_too_large_together_go_in_several_frames(
    ends: tuple[End, End],
) -> None:
    front, worker = ends
    large = [Delta(str(n), "x" * (MAX_FRAME_BYTES // 3), [], {}, False) for n in range(5)]
    for delta in large:
        worker.channel.send(delta)
    assert await front.hears(5) == large
    assert worker.unsendable == []
    assert worker.channel.traffic.frames_sent > 1


async def test_an_abort_drops_what_the_other_side_does_not_read() -> None:
    ours, theirs = socket.socketpair()
    end = End(FromWorker)
    await end.channel.attach(ours)
    end.channel.send(Delta("r", "x" * 10_000_000, [], {}, False))  # more than a socket holds
    end.channel.flush()
    end.channel.abort()
    await end.gone.wait()
    ours.close()
    assert ours.fileno() == -1
    theirs.close()


async def test_what_was_sent_before_the_close_arrives(ends: tuple[End, End]) -> None:
    front, worker = ends
    front.channel.send(Ping(1))
    front.channel.close()
    await worker.gone.wait()
    assert worker.heard == [Ping(1)]


async def test_the_end_is_said_once_on_both_sides(ends: tuple[End, End]) -> None:
    front, worker = ends
    worker.channel.close()
    worker.channel.close()
    await front.gone.wait()
    await worker.gone.wait()
    assert (front.goodbyes, worker.goodbyes) == (1, 1)


async def test_sending_to_one_who_is_gone_is_silent(ends: tuple[End, End]) -> None:
    front, worker = ends
    worker.channel.close()
    await front.gone.wait()
    front.channel.send(Stop())
    front.channel.flush()
    assert front.channel.traffic.frames_sent == 0


GARBAGE = {
    "another message": frame({"type": "nobody"}),
    "a message of the other direction": frame(Ping(1)),
    "not a list": struct.pack("!I", 1) + b"\x01",
    "not MessagePack": struct.pack("!I", 4) + b"\xc1\xc1\xc1\xc1",
    "an impossible length": b"HTTP/1.1 200 OK\r\n\r\n",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
async def test_garbage_is_the_end(garbage: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        end = End(FromWorker)
        await end.channel.attach(ours)
        theirs.sendall(garbage)
        await end.gone.wait()
        assert (end.heard, end.goodbyes) == ([], 1)
        assert theirs.recv(1) == b""
