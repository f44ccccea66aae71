"""Bodies within a size each, and within a memory all together."""

from __future__ import annotations

import asyncio
import gzip
from typing import TYPE_CHECKING

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from pd_eagle.errors import InvalidRequest, Overloaded
from pd_eagle.http.request_body import BodyMemory

if TYPE_CHECKING:
    from starlette.types import Message


def sending(*pieces: bytes, encoding: str = "") -> Request:
    """Return a request whose body comes in `pieces`."""
    left = list(pieces)

    async def receive() -> Message:
        piece = left.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(left)}

    headers = [(b"content-encoding", encoding.encode())] if encoding else []
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


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


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_a_body_may_be_compressed(size: int) -> None:
    memory = BodyMemory(2**20)
    plain = b'{"prompt": "' + b"a" * 5000 + b'"}'
    packed = gzip.compress(plain)
    pieces = [packed[at : at + size] for at in range(0, len(packed), size)]
    async with memory.body_of(sending(*pieces, encoding="gzip")) as body:
        assert body == plain
        assert memory.held_bytes == len(plain)


@pytest.mark.parametrize("levels", [1, 2])
async def test_a_compressed_body_counts_as_it_is_unpacked(levels: int) -> None:
    bomb = gzip.compress(b" " * (levels * 12 * 2**20))
    pieces = [bomb[at : at + 1000] for at in range(0, len(bomb), 1000)]
    memory = BodyMemory(2**23 if levels == 1 else 2**30)
    with pytest.raises((Overloaded, HTTPException)) as refused:
        async with memory.body_of(sending(*pieces, encoding="gzip")):
            pass
    assert isinstance(refused.value, Overloaded) is (levels == 1)
    assert memory.held_bytes == 0


@pytest.mark.parametrize(
    ("encoding", "body", "error"),
    [
        ("br", b"x", HTTPException),
        ("gzip", b"{}", InvalidRequest),
        ("gzip, br", b"", HTTPException),
    ],
)
async def test_an_encoding_that_is_wrong(
    encoding: str, body: bytes, error: type[Exception]
) -> None:
    with pytest.raises(error):
        async with BodyMemory(2**20).body_of(sending(body, encoding=encoding)):
            pass
