"""Clients that send half, too much or nothing, or do not read: everybody else is served."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from tests.process.scripted_server import Server
from tests.scripted import Act, Script

if TYPE_CHECKING:
    from pathlib import Path

HALF = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 999\r\n\r\n{"

#: 16 s of tokens, about 1.4 MB: less than the kernel's own buffers may hold for one connection.
LONG = Script(
    acts={"s": Act(burst=64, pause_s=0.001)}, context_length=2**20, max_total_tokens=2**20
)


@pytest.fixture(autouse=True, params=["uvloop", "asyncio"])
def loop_of_the_server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both event loops."""
    monkeypatch.setenv("EVENT_LOOP", request.param)


async def connect(server: Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", int((await server.url()).rpartition(":")[2]))


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_half_sent_bodies_take_nobodys_place_and_end(tmp_path: Path) -> None:
    few = {"MAX_INFLIGHT": "2", "MAX_QUEUE": "1", "BODY_TIMEOUT_S": "2"}
    async with Server(tmp_path, None, None, **few) as server:
        await server.ready()
        clients = [await connect(server) for _ in range(50)]
        for _, writer in clients:
            writer.write(HALF)
            await writer.drain()
        assert (await server.complete("x")).status_code == 200
        for reader, writer in clients:
            assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
            await hang_up(writer)
        assert (await server.complete("x")).status_code == 200


async def test_bodies_of_all_clients_have_one_memory(tmp_path: Path) -> None:
    few = {"MAX_BODY_MEMORY_BYTES": str(2**24), "BODY_TIMEOUT_S": "5"}
    half = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % 2**23
    half += b" " * (2**23 - 1)
    async with Server(tmp_path, None, None, **few) as server:
        await server.ready()
        clients = [await connect(server) for _ in range(3)]
        for _, writer in clients:
            writer.write(half)
        answers = sorted(await asyncio.gather(*(reader.read(2000) for reader, _ in clients)))
        assert [answer[9:12] for answer in answers] == [b"408", b"408", b"503"]
        for _, writer in clients:
            await hang_up(writer)
        assert (await server.complete("x")).status_code == 200


async def test_headers_have_a_deadline_and_a_size(tmp_path: Path) -> None:
    async with Server(tmp_path, None, None, HEADERS_TIMEOUT_S="1") as server:
        await server.ready()
        slow, large = await connect(server), await connect(server)
        slow[1].write(b"GET /health HTTP/1.1\r\nhost:")
        large[1].write(b"GET /health HTTP/1.1\r\n" + b"x: " + b"y" * (2**16 + 100))
        assert (await slow[0].read()).startswith(b"HTTP/1.1 408 ")
        assert (await large[0].read(12)) == b"HTTP/1.1 431"
        for _, writer in (slow, large):
            await hang_up(writer)


async def test_more_connections_than_descriptors_leave_health_answered(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.under = ("prlimit", "--nofile=64:64")
    async with server:
        await server.ready()
        clients = [await connect(server) for _ in range(80)]
        for _ in range(3):
            assert (await server.request("GET", "/health/live")).status_code == 200
        assert (await server.complete("x")).status_code == 200
        for _, writer in clients:
            await hang_up(writer)


async def test_a_server_takes_all_descriptors_it_may_have(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.under = ("prlimit", "--nofile=64:512")
    async with server:
        await server.line("456 connections at once: this process may have 512 files")


async def start_a_long_stream(
    server: Server,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await connect(server)
    body = b'{"prompt": "s", "stream": true, "max_tokens": 1000000}'
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
    writer.write(head % len(body) + body)
    await reader.read(1)
    return reader, writer


async def test_a_stream_that_nobody_reads_ends(tmp_path: Path) -> None:
    async with Server(tmp_path, LONG, LONG, WRITE_TIMEOUT_S="1") as server:
        await server.ready()
        _, writer = await start_a_long_stream(server)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await server.line("decode-0 . aborted")
        await hang_up(writer)


async def test_a_stream_that_is_read_slowly_keeps_no_place_past_its_deadline(
    tmp_path: Path,
) -> None:
    async with Server(tmp_path, LONG, LONG, REQUEST_TIMEOUT_S="1") as server:
        await server.ready()
        reader, writer = await start_a_long_stream(server)
        aborted = asyncio.ensure_future(server.line("decode-0 . aborted"))
        while not aborted.done():
            assert await reader.read(100)
            await asyncio.wait([aborted], timeout=0.02)
        assert (await server.request("GET", "/health")).json()["inflight"] == 0
        await hang_up(writer)
