"""Comments fill the silence of a stream, one at a time, and none after its end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pd_eagle.http.keep_alive import COMMENT, KeepAlive

if TYPE_CHECKING:
    from starlette.types import Message

INTERVAL_S = 0.02


class Client:
    """Takes what is sent; may be slow, or gone."""

    def __init__(self) -> None:
        self.got: list[Message] = []
        self.came = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()
        self.gone = False

    async def send(self, message: Message) -> None:
        self.got.append(message)
        self.came.set()
        await self.reads.wait()
        if self.gone:
            raise BrokenPipeError


async def test_a_stream_that_speaks_has_no_comments() -> None:
    client = Client()
    with KeepAlive(client.send, INTERVAL_S) as alive:
        for _ in range(20):
            alive.sent += 1
            await asyncio.sleep(INTERVAL_S / 10)
            alive.sent += 1
        alive._tick()  # as its timer does, however late on a busy machine
    assert client.got.count(COMMENT) <= 1


async def test_a_client_that_does_not_read_gets_one_comment() -> None:
    client = Client()
    client.reads.clear()
    with KeepAlive(client.send, INTERVAL_S):
        await client.came.wait()
        await asyncio.sleep(5 * INTERVAL_S)
        assert client.got == [COMMENT]


async def test_none_comes_after_the_end() -> None:
    client = Client()
    with KeepAlive(client.send, INTERVAL_S):
        await client.came.wait()
    said = len(client.got)
    await asyncio.sleep(5 * INTERVAL_S)
    assert len(client.got) == said


async def test_a_client_that_is_gone_is_the_streams_own_matter() -> None:
    client = Client()
    client.gone = True
    with KeepAlive(client.send, INTERVAL_S) as alive:
        await client.came.wait()
        await asyncio.sleep(0)
        assert alive._comment is not None
        await alive._comment


async def test_zero_sends_none() -> None:
    client = Client()
    with KeepAlive(client.send, 0.0) as alive:
        assert alive._timer is None
