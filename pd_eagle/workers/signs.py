"""For how long a worker has given no sign of life; it decides nothing.

The host answers pings. The scheduler generates, or writes a snapshot of its load, at least once a
second unless a step takes longer; the host reads that even when the scheduler hangs (SGLang
0.5.23).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pd_eagle.workers import own_time

if TYPE_CHECKING:
    from pd_eagle.workers.own_time import OwnTime
    from pd_eagle.workers.worker import Worker

#: What one look may add to a silence, in seconds: a front that stood still for a minute has heard
#: nothing in it, which says nothing of the worker.
_MOST_A_LOOK_S = 3.0


class SignsOfLife:
    """What was heard of one worker since it became ready. To be asked about once a second."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._host_s = 0.0
        self._scheduler_s = 0.0
        self._heard = -1.0
        self._scheduler = -1.0, -1.0
        self._clock: OwnTime | None = None

    async def silence_s(self) -> float:
        """Return the silence of host or scheduler, whichever is longer; asks for the next sign.

        Counted in their own time: a process that waits for a processor cannot say anything.
        """
        worker, load = self._worker, self._worker.load
        # What a clock of the scheduler's says is only compared with itself: clocks are set.
        scheduler = worker.generated_at, load.snapshot_at if load else worker.heard_at
        host_spoke, self._heard = worker.heard_at != self._heard, worker.heard_at
        scheduler_spoke, self._scheduler = scheduler != self._scheduler, scheduler
        worker.ask()
        if host_spoke and scheduler_spoke:
            self._host_s, self._scheduler_s, self._clock = 0.0, 0.0, None
            return 0.0
        passed_s = await self._passed_s()
        self._host_s = 0.0 if host_spoke else self._host_s + passed_s
        if scheduler_spoke:
            self._scheduler_s = 0.0
        elif host_spoke:  # else nobody could have told
            self._scheduler_s += passed_s
        return max(self._host_s, self._scheduler_s)

    async def _passed_s(self) -> float:
        if self._clock is None:
            self._clock = await own_time.measure(self._worker.pids)
            return 0.0
        before_s = self._clock.elapsed_s
        return await asyncio.to_thread(self._clock.read, _MOST_A_LOOK_S) - before_s
