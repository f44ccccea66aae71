"""Pings and controls: a caller waits for its own answer; one ping at a time has no caller."""

from __future__ import annotations

import asyncio

import pytest

from pd_eagle.errors import EngineError, WorkerDied
from pd_eagle.messages import Control, ControlResult, Ping
from pd_eagle.workers.questions import Questions


async def test_each_caller_waits_for_its_own_pong() -> None:
    sent: list[Ping | Control] = []
    questions = Questions(sent.append)
    first, second = (asyncio.create_task(questions.ping()) for _ in range(2))
    await asyncio.sleep(0)
    assert sent == [Ping(0), Ping(1)]
    questions.pong(1)
    await second
    assert not first.done()
    questions.pong(0)
    await first
    questions.pong(0)  # a second one is nobody's


async def test_one_ping_at_a_time_is_sent_without_a_caller() -> None:
    sent: list[Ping | Control] = []
    questions = Questions(sent.append)
    questions.ping_without_waiting()
    questions.ping_without_waiting()
    assert sent == [Ping(0)]
    questions.pong(0)
    questions.ping_without_waiting()
    assert sent == [Ping(0), Ping(1)]


async def test_a_death_ends_every_wait() -> None:
    questions = Questions(lambda ping: None)
    waiting = [asyncio.create_task(questions.ping()) for _ in range(2)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    questions.fail("decode-0: its process ended")
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
    with pytest.raises(WorkerDied, match="decode-0: its process ended"):
        await waiting[1]


async def test_a_control_brings_its_own_result_or_error() -> None:
    sent: list[Ping | Control] = []
    questions = Questions(sent.append)
    done = asyncio.create_task(questions.control("flush_cache", {}))
    failed = asyncio.create_task(questions.control("stop_profile", {}))
    await asyncio.sleep(0)
    assert sent == [Control(0, "flush_cache", {}), Control(1, "stop_profile", {})]
    questions.answered(ControlResult(1, error="RuntimeError: none was started"))
    questions.answered(ControlResult(0, {"success": True}))
    assert await done == {"success": True}
    with pytest.raises(EngineError, match="stop_profile: RuntimeError: none was started"):
        await failed
