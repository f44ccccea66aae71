"""Starts a plan's workers all at once, watches them, restarts those that die, stops them all.

A worker that cannot start fails the first start of the whole plan; later it is retried with
backoff, also after it was given up. It knows nothing of requests.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter
from typing import TYPE_CHECKING

from pd_eagle.errors import PdEagleError, StartFailed
from pd_eagle.workers.heartbeat import Heartbeat
from pd_eagle.workers.process_stat import cpu_time_s
from pd_eagle.workers.restarts import RestartHistory, RestartPolicy
from pd_eagle.workers.run_folder import RunFolder
from pd_eagle.workers.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from pd_eagle.plan.placement import Plan
    from pd_eagle.workers.death import Death
    from pd_eagle.workers.launch import Launch

logger = logging.getLogger(__name__)

#: Factor on HANG_TIMEOUT_S until the first result after a start, and how often hangs double it.
_UNPROVED_TIMES, _LONGEST_HANG_DOUBLINGS = 4, 3
#: A scheduler that used the CPU for this share of a silence was neither stopped nor starved.
_OWN_DOING_SHARE = 0.5


def _busy_s(worker: Worker) -> float:
    pids = worker.info.scheduler_pids if worker.info else []
    return max(map(cpu_time_s, pids), default=0.0)


class Supervisor:
    """Owns the workers of one plan.

    `on_change` is called when a worker dies, comes back, is suspected or is given up. `on_crash`
    gets a crash of the engine's own, and returns whether it counts against the worker.
    """

    def __init__(
        self,
        plan: Plan,
        on_change: Callable[[], None],
        policy: RestartPolicy | None = None,
        on_crash: Callable[[Worker, Death], bool] = lambda *_: True,
    ) -> None:
        self.workers = [Worker(worker, self._on_death) for worker in plan.workers]
        self._policy = policy or RestartPolicy()
        self._on_change = on_change
        self._on_crash = on_crash
        self._launch: Callable[[str, Path], Launch] | None = None
        self._folder: RunFolder | None = None
        self._starts = itertools.count()
        self._histories = {
            worker.name: RestartHistory(self._policy.window_s) for worker in self.workers
        }
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self.longest_start_s = 0.0
        self._hangs: Counter[str] = Counter()
        self._busy_before: dict[str, tuple[float, float]] = {}

    async def start(self, launch: Callable[[str, Path], Launch]) -> None:
        """Start every worker; `launch(name, temp_dir)` says how, for restarts too.

        Raises `StartFailed` of the first that fails, after all others were ended.
        """
        self._launch = launch
        self._folder = await asyncio.to_thread(RunFolder)
        starts = [asyncio.create_task(self._start(worker)) for worker in self.workers]
        try:
            await asyncio.gather(*starts)
        except BaseException:
            for start in starts:  # one that still waits for its process must not go on
                start.cancel()
            await self.stop()
            await asyncio.gather(*starts, return_exceptions=True)
            raise
        for worker in self.workers:
            self._spawn(self._watch(worker))

    async def _start(self, worker: Worker) -> None:
        began = time.monotonic()
        launch = await self._next_launch(worker)
        try:
            await worker.start(launch, self._policy.start_timeout_s)
        except StartFailed as error:
            if not launch.launcher.stop_forking(error.message):
                raise
            worker.become("restarting")
            await worker.start(await self._next_launch(worker), self._policy.start_timeout_s)
        self.longest_start_s = max(self.longest_start_s, time.monotonic() - began)
        self._histories[worker.name].came_up()

    async def _next_launch(self, worker: Worker) -> Launch:
        assert self._launch is not None
        assert self._folder is not None
        if worker.temp_dir is not None:
            await asyncio.to_thread(self._folder.forget, worker.temp_dir)
        temp_dir = self._folder.path / f"{worker.name}-{next(self._starts)}"
        return self._launch(worker.name, temp_dir)

    async def stop(self) -> None:
        """Stop every worker, whatever its state."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(worker.stop() for worker in self.workers))
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._folder is not None:
            self._folder.remove()
            self._folder = None

    def kill(self) -> None:
        """Kill every worker for good, from any thread; `stop` cleans up after it."""
        self._stopping = True
        for worker in self.workers:
            worker.kill()

    def recovering(self) -> bool:
        """Return whether a worker that does not serve now may do so later."""
        return not self._stopping and any(
            worker.state in ("starting", "suspect", "restarting") for worker in self.workers
        )

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.error("a task of the supervisor failed", exc_info=error)

    # --- deaths and restarts

    def _on_death(self, worker: Worker, death: Death) -> None:
        said = f"; its last words: {death.crash}" if death.crash else ""
        logger.error("%s failed: %s%s", worker.name, death.how, said)
        history = self._histories[worker.name]
        history.went_down()
        if not history.recent:
            self._hangs.pop(worker.name, None)  # the last was long ago
        counts = death.crash is None or self._on_crash(worker, death)
        if not self._stopping:
            worker.become("restarting")
            self._spawn(self._restart(worker, counts=counts))
        self._on_change()

    def blame(self, name: str) -> None:
        """Count a crash of that worker after all: no request caused it."""
        self._histories[name].add()

    async def _restart(self, worker: Worker, *, counts: bool) -> None:
        history = self._histories[worker.name]
        while True:
            await self._wait_before_start(worker, history)
            if worker.state == "failed":  # it was given up
                worker.become("restarting")
            if counts:
                history.add()
            if await self._came_back(worker):
                self._on_change()
                return
            counts = True

    async def _wait_before_start(self, worker: Worker, history: RestartHistory) -> None:
        recent = history.recent
        if recent < self._policy.limit:
            history.tries_since_given_up = 0
            if worker.state == "failed":  # its last start did; it is not given up
                worker.become("restarting")
            await asyncio.sleep(self._policy.delay_s(recent))
            return
        again_s = self._policy.given_up_s(history.tries_since_given_up)
        history.tries_since_given_up += 1
        self._give_up(worker, recent, again_s)
        await asyncio.sleep(again_s)

    async def _came_back(self, worker: Worker) -> bool:
        began = time.monotonic()
        try:
            await self._start(worker)
        except StartFailed as error:
            logger.error("%s", error)
            return False
        except Exception as error:  # OSError: no process, no descriptor, no room. Others: defects
            worker.last_error = f"it could not be launched: {type(error).__name__}: {error}"
            known = isinstance(error, OSError)
            logger.error("%s: %s", worker.name, worker.last_error, exc_info=not known)
            return False
        worker.restarts += 1
        logger.warning("%s is back after %.1f s", worker.name, time.monotonic() - began)
        return True

    def _give_up(self, worker: Worker, restarts: int, again_s: float) -> None:
        worker.last_error = (
            f"given up after {restarts} restarts within {self._policy.window_s:g} s: "
            f"{worker.last_error} (tried again in {again_s:.0f} s)"
        )
        if worker.state != "failed":
            worker.become("failed")
        logger.error("%s: %s", worker.name, worker.last_error)
        self._on_change()

    # --- heartbeats

    async def _watch(self, worker: Worker) -> None:
        heartbeat, life = Heartbeat(worker), worker.restarts
        while True:
            await asyncio.sleep(min(1.0, self._policy.hang_timeout_s / 4))
            if life != worker.restarts:
                heartbeat, life = Heartbeat(worker), worker.restarts
            if worker.state in ("ready", "suspect"):
                try:
                    self._judge(worker, await heartbeat.silence_s())
                except PdEagleError as error:  # it died meanwhile, which is reported elsewhere
                    logger.debug("%s: %s", worker.name, error)
                except Exception:  # a defect must not end the checks
                    logger.exception("%s could not be checked", worker.name)

    def _judge(self, worker: Worker, silence_s: float) -> None:
        """Suspect a worker after half of its hang timeout without heartbeat, end it after all.

        The seconds are the worker's own time: on a machine with ten runnable processes per core
        they take ten times as long.
        """
        limit_s = self._hang_timeout_s(worker)
        if silence_s < limit_s / 2:
            if worker.state == "suspect":
                worker.become("ready")
                self._on_change()
        elif worker.state == "ready":
            self._busy_before[worker.name] = _busy_s(worker), silence_s
            worker.become("suspect")
            self._on_change()
        elif worker.state == "suspect" and silence_s >= limit_s:
            how = f"no sign of life for {silence_s:.1f} s"
            worker.declare_dead(how, self._own_doing(worker, silence_s))
            self._hangs[worker.name] += 1

    def _hang_timeout_s(self, worker: Worker) -> float:
        """Return how long `worker` may be silent.

        Longer until its first result, and twice as long after each hang: a kernel that takes long
        to compile must be compiled to its end once, or every restart compiles it again.
        """
        given_s = self._policy.hang_timeout_s
        known_s = given_s * 2.0 ** min(self._hangs[worker.name], _LONGEST_HANG_DOUBLINGS)
        return known_s if worker.proved else max(known_s, _UNPROVED_TIMES * given_s)

    def _own_doing(self, worker: Worker, silence_s: float) -> str | None:
        """Return what `worker` did since it became suspect, if its own code keeps it silent.

        None if it was stopped or waits for something.
        """
        busy_before_s, silence_before_s = self._busy_before[worker.name]
        busy_s, passed_s = _busy_s(worker) - busy_before_s, silence_s - silence_before_s
        if busy_s < _OWN_DOING_SHARE * passed_s:
            return None
        return f"hung: its scheduler was busy for {busy_s:.1f} s of {passed_s:.1f} s without a sign"
