"""When a process has ended: told once, at once, and not after the wait was ended."""

from __future__ import annotations

import asyncio
import subprocess

import pytest

from pd_eagle.workers.process_exit import reap, wait_ended, when_ended


@pytest.fixture
async def child() -> subprocess.Popen[bytes]:
    return await asyncio.to_thread(subprocess.Popen, ["cat"], stdin=subprocess.PIPE)


def end(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    child.stdin.close()


async def test_an_end_is_told_once(child: subprocess.Popen[bytes]) -> None:
    told: list[str] = []
    stop_waiting = when_ended(child.pid, lambda: told.append("ended"))
    await asyncio.sleep(0)
    assert told == []
    end(child)
    await wait_ended(child.pid)
    await asyncio.sleep(0)
    stop_waiting()
    assert told == ["ended"]
    child.returncode = reap(child.pid)
    assert child.returncode == 0


async def test_nothing_is_told_after_the_wait_was_ended(child: subprocess.Popen[bytes]) -> None:
    told: list[str] = []
    stop_waiting = when_ended(child.pid, lambda: told.append("ended"))
    stop_waiting()
    stop_waiting()
    end(child)
    await wait_ended(child.pid)
    await asyncio.sleep(0)
    assert told == []
    child.returncode = reap(child.pid)


async def test_a_process_that_is_gone_has_ended(child: subprocess.Popen[bytes]) -> None:
    end(child)
    await asyncio.to_thread(child.wait)
    told: list[str] = []
    when_ended(child.pid, lambda: told.append("ended"))
    assert told == ["ended"]
    await wait_ended(child.pid)
    assert reap(child.pid) is None
