"""Bodies within a size each, and within a memory all together."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from starlette.requests import Request

from pd_eagle.errors import InvalidRequest, Overloaded
from pd_eagle.http.request_body import BodyMemory

if TYPE_CHECKING:
    from starlette.types import Message


def sending(*pieces: bytes) -> Request:
    """Return a request whose body comes in `pieces`."""
    left = list(pieces)

    async def receive() -> Message:
        piece = left.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(left)}

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


async def test_memory_counts_until_the_block_ends() -> None:
    memory = BodyMemory(10)
    async with memory.body_of(sending(b"12", b"3")) as body:
        assert (body, memory.held_bytes) == (b"123", 3)
    assert memory.held_bytes == 0


async def test_together_they_have_a_limit() -> None:
    memory = BodyMemory(10)
    async with memory.body_of(sending(b"123456")):
        with pytest.raises(Overloaded, match=r"hold 9 bytes: at most 10 \(MAX_BODY_MEMORY_BYTES\)"):
            async with memory.body_of(sending(b"123", b"45")):
                raise AssertionError("it was taken")
        assert memory.held_bytes == 6
    assert memory.held_bytes == 0


async def test_a_reader_that_is_cancelled_gives_its_memory_back() -> None:
    memory = BodyMemory(10)
    first = [{"type": "http.request", "body": b"123", "more_body": True}]
    waits = asyncio.Event()

    async def receive() -> Message:
        if not first:
            waits.set()
            await asyncio.Event().wait()
        return first.pop()

    async def read() -> None:
        async with memory.body_of(
            Request({"type": "http", "method": "POST", "headers": []}, receive)
        ):
            raise AssertionError("it has no end")

    reading = asyncio.create_task(read())
    await waits.wait()
    assert memory.held_bytes == 3
    reading.cancel()
    await asyncio.wait([reading])
    assert memory.held_bytes == 0


async def test_an_empty_one_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="wanted a JSON object"):
        async with BodyMemory(10).body_of(sending(b"")):
            raise AssertionError("it was taken")
