"""For how long a worker has sent no heartbeat; what follows from that is decided elsewhere.

The host answers pings. The scheduler generates tokens, or writes a snapshot of its load at least
once a second unless a step takes longer; the host reads that even when the scheduler hangs (SGLang
0.5.23).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pd_eagle.workers import own_time

if TYPE_CHECKING:
    from pd_eagle.workers.own_time import OwnTime
    from pd_eagle.workers.worker import Worker

#: The most that one check adds to a silence, in seconds: a front that was stopped for a minute read
#: no messages in it, which is no fault of the worker.
_MOST_PER_CHECK_S = 3.0


class Heartbeat:
    """The heartbeats of one worker since it became ready; to be checked about once a second."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._host_s = 0.0
        self._scheduler_s = 0.0
        self._host_at = -1.0
        self._scheduler_at = -1.0, -1.0
        self._clock: OwnTime | None = None

    async def silence_s(self) -> float:
        """Return the silence of host or scheduler, whichever is longer; requests the next pong.

        Counted in their own time: a process that waits for a CPU cannot send anything.
        """
        worker, load = self._worker, self._worker.load
        # Times of the scheduler's clock are compared with each other only: clocks are adjusted.
        scheduler = worker.generated_at, load.snapshot_at if load else worker.heard_at
        host_alive, self._host_at = worker.heard_at != self._host_at, worker.heard_at
        scheduler_alive, self._scheduler_at = scheduler != self._scheduler_at, scheduler
        worker.ask()
        if host_alive and scheduler_alive:
            self._host_s, self._scheduler_s, self._clock = 0.0, 0.0, None
            return 0.0
        passed_s = await self._passed_s()
        self._host_s = 0.0 if host_alive else self._host_s + passed_s
        if scheduler_alive:
            self._scheduler_s = 0.0
        elif host_alive:  # else no snapshot could be read
            self._scheduler_s += passed_s
        return max(self._host_s, self._scheduler_s)

    async def _passed_s(self) -> float:
        if self._clock is None:
            self._clock = await own_time.measure(self._worker.pids)
            return 0.0
        before_s = self._clock.elapsed_s
        return await asyncio.to_thread(self._clock.read, _MOST_PER_CHECK_S) - before_s
