"""Reads request bodies: each has a maximum size, and all of them share a memory limit.

A body counts from its first byte until it has been parsed. It does not know the contents.
"""

from __future__ import annotations

import contextlib
import zlib
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException

from pd_eagle.errors import InvalidRequest, Overloaded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.requests import Request

MAX_BODY_BYTES = 16 * 2**20
# Drain up to 64 MiB of an oversized body so that the client reads the 413.
_LARGEST_BODY_READ = 4 * MAX_BODY_BYTES
_GZIP_WINDOW = 16 + zlib.MAX_WBITS


class BodyMemory:
    """The bytes that the bodies of all requests hold, at most `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        self.held_bytes = 0
        self._limit_bytes = limit_bytes

    @contextlib.asynccontextmanager
    async def body_of(self, request: Request) -> AsyncIterator[bytes]:
        """Read the body of `request`; its memory counts until the block ends.

        Raises `InvalidRequest` for an empty body, `HTTPException` 413 for one that is too large and
        `Overloaded` where the bodies of all requests would be.
        """
        body = bytearray()
        try:
            await self._read(request, body)
            yield bytes(body)
        finally:
            self.held_bytes -= len(body)

    async def _read(self, request: Request, body: bytearray) -> None:
        size = 0
        decode = _decoder(request.headers.get("content-encoding", ""))
        async for chunk in request.stream():
            size += len(chunk)
            if size > _LARGEST_BODY_READ:
                break
            if size <= MAX_BODY_BYTES:
                plain = decode(chunk, MAX_BODY_BYTES + 1 - len(body))
                if len(body) + len(plain) > MAX_BODY_BYTES:
                    size = MAX_BODY_BYTES + len(plain)
                    continue
                self._take(len(plain))
                body += plain
        if size > MAX_BODY_BYTES:
            raise _too_large(size)
        if not body:
            raise InvalidRequest("the body is empty: wanted a JSON object")

    def _take(self, size: int) -> None:
        if self.held_bytes + size > self._limit_bytes:
            raise Overloaded(
                f"the bodies of all requests hold {self.held_bytes} bytes: at most "
                f"{self._limit_bytes} (MAX_BODY_MEMORY_BYTES)"
            )
        self.held_bytes += size


def _decoder(encoding: str) -> Callable[[bytes, int], bytes]:
    """Return what makes plain bytes, at most so many, of a chunk of a body.

    Raises `HTTPException` 415 for an encoding that is not known.
    """
    match encoding.strip().lower():
        case "" | "identity":
            return lambda chunk, _: chunk
        case "gzip" | "x-gzip":
            return _gunzip(zlib.decompressobj(_GZIP_WINDOW))
    raise HTTPException(415, f"content-encoding: {encoding[:40]!r}: wanted gzip or none")


def _gunzip(state: zlib._Decompress) -> Callable[[bytes, int], bytes]:
    def decode(chunk: bytes, at_most: int) -> bytes:
        try:
            return state.decompress(chunk, at_most)
        except zlib.error as error:
            raise InvalidRequest(f"the body is not gzip, as its headers say: {error}") from error

    return decode


def _too_large(size: int) -> HTTPException:
    return HTTPException(
        413,
        f"the body has at least {size} bytes: wanted at most {MAX_BODY_BYTES}",
        headers={"connection": "close"},
    )
