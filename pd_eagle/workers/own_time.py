"""Wall time of processes less the time that they waited in the CPU's run queue.

With nine runnable processes per core everything takes nine times as long, and nothing hangs. It
knows processes by their pids and not what they are for.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping

#: At least this share of wall time counts, so that every limit ends: on the busiest machine a hang
#: is found within ten times as long.
LEAST_SHARE = 0.1
_CHECK_S = 0.5

_Waits = dict[tuple[int, str], int]


class OwnTime:
    """A clock that stands still while its processes wait in the run queue.

    Linux counts that wait for every thread (`/proc/PID/task/TID/schedstat`); where it does not,
    this is the wall clock. The caller's own process is one of those measured: its delays are no
    fault of the others.
    """

    def __init__(
        self,
        pids: Iterable[int],
        clock: Callable[[], float] = time.monotonic,
        waits: Callable[[Iterable[int]], Mapping[tuple[int, str], int]] | None = None,
    ) -> None:
        self._pids = (*pids, os.getpid())
        self._clock = clock
        self._waits = waits or waits_of
        self._read_at = clock()
        self._before = self._waits(self._pids)
        self.elapsed_s = 0.0

    def read(self, most_s: float = float("inf")) -> float:
        """Return the seconds of own time since the start; this read adds at most `most_s` of them.

        Reads some files of each process: not for a thread that must not block.
        """
        now, waits = self._clock(), self._waits(self._pids)
        passed_s = now - self._read_at
        # The one that waited longest: the others may have waited for it.
        waited = max((ns - self._before.get(key, 0) for key, ns in waits.items()), default=0)
        own_s = max(passed_s - waited / 1e9, passed_s * LEAST_SHARE)
        self.elapsed_s += min(own_s, most_s)
        self._read_at, self._before = now, waits
        return self.elapsed_s


def waits_of(pids: Iterable[int]) -> _Waits:
    """Return for each thread of `pids` how many nanoseconds it has waited in the run queue."""
    found: _Waits = {}
    for pid in pids:
        tasks = f"/proc/{pid}/task"
        with contextlib.suppress(OSError):  # it has ended
            for task in os.listdir(tasks):
                with contextlib.suppress(OSError, ValueError, IndexError):
                    found[pid, task] = int(Path(f"{tasks}/{task}/schedstat").read_text().split()[1])
    return found


def with_children(pids: Iterable[int]) -> list[int]:
    """Return `pids` and the processes that they started themselves."""
    found = list(pids)
    for pid in tuple(found):
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            found += [child for child in map(int, children) if child not in found]
    return found


async def limited(work: Coroutine[Any, Any, None], pids: Iterable[int], limit_s: float) -> None:
    """Await `work`; raises `TimeoutError` when it takes more than `limit_s` of the own time of
    `pids`, which is at most ten times as long by the clock.
    """
    clock = await measure(pids)
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            # Often: threads wait in turn, and each check counts only the longest wait.
            await asyncio.wait({task}, timeout=min(_CHECK_S, max(limit_s - clock.elapsed_s, 0.01)))
            if not task.done() and await asyncio.to_thread(clock.read) >= limit_s:
                raise TimeoutError
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    task.result()


async def measure(pids: Iterable[int]) -> OwnTime:
    """Return a clock for `pids` and their children, started now."""
    return await asyncio.to_thread(lambda: OwnTime(with_children(pids)))
