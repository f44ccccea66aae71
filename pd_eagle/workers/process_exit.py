"""When a process has ended, by its pidfd, and reaping it; does not know what it was for."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# A killed process may take a while to end: 5 s.
_REAP_TRIES, _REAP_INTERVAL_S = 50, 0.1


def when_ended(pid: int, call: Callable[[], None]) -> Callable[[], None]:
    """Call once when the process has ended, whoever its parent is; at once if it has.

    Returns what ends the wait; harmless after the call, and a second time.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        call()
        return lambda: None
    loop, waiting = asyncio.get_running_loop(), [pidfd]

    def stop_waiting() -> None:
        while waiting:
            loop.remove_reader(pidfd)
            os.close(waiting.pop())

    def ended() -> None:
        stop_waiting()
        call()

    loop.add_reader(pidfd, ended)
    return stop_waiting


async def wait_ended(pid: int) -> None:
    """Wait until the process has ended, whoever its parent is."""
    ended = asyncio.Event()
    stop_waiting = when_ended(pid, ended.set)
    try:
        await ended.wait()
    finally:
        stop_waiting()


async def wait_all_ended(pids: Iterable[int], timeout_s: float) -> None:
    """Wait until all of `pids` have ended, for `timeout_s` at most.

    A killed scheduler holds its GPU's memory until then.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            for pid in pids:
                await wait_ended(pid)


def reap(pid: int) -> int | None:
    """Return the wait status of a process that has ended; None if it is not our child."""
    try:
        return os.waitpid(pid, os.WNOHANG)[1]
    except ChildProcessError:
        return None


async def reap_group(group: int) -> None:
    """Reap what ends of a dead worker's process group, as far as it is ours.

    Orphans come to the first process of a container, which the front may be.
    """
    for _ in range(_REAP_TRIES):
        try:
            pid, _ = os.waitpid(-group, os.WNOHANG)  # noqa: ASYNC222 - it does not wait
        except ChildProcessError:
            return
        if pid == 0:
            await asyncio.sleep(_REAP_INTERVAL_S)
