"""Pings: a caller waits for its own pong, and one ping at a time is sent that nobody waits for."""

from __future__ import annotations

import asyncio

import pytest

from pd_eagle.errors import WorkerDied
from pd_eagle.messages import Ping
from pd_eagle.workers.pings import Pings


async def test_each_caller_waits_for_its_own_pong() -> None:
    sent: list[Ping] = []
    pings = Pings(sent.append)
    first, second = (asyncio.create_task(pings.ping()) for _ in range(2))
    await asyncio.sleep(0)
    assert sent == [Ping(0), Ping(1)]
    pings.pong(1)
    await second
    assert not first.done()
    pings.pong(0)
    await first
    pings.pong(0)  # a second one is nobody's


async def test_one_ping_at_a_time_is_sent_without_a_caller() -> None:
    sent: list[Ping] = []
    pings = Pings(sent.append)
    pings.ping_without_waiting()
    pings.ping_without_waiting()
    assert sent == [Ping(0)]
    pings.pong(0)
    pings.ping_without_waiting()
    assert sent == [Ping(0), Ping(1)]


async def test_a_death_ends_every_wait() -> None:
    pings = Pings(lambda ping: None)
    waiting = [asyncio.create_task(pings.ping()) for _ in range(2)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    pings.fail("decode-0: its process ended")
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
    with pytest.raises(WorkerDied, match="decode-0: its process ended"):
        await waiting[1]
