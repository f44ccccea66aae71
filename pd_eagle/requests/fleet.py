"""The workers of one plan with the links between them, and the status that follows from both.

It starts, probes and stops them, and says how long nothing has worked. It knows no requests but its
own probes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Literal

from pd_eagle.errors import DeadlineExceeded, NotServing, PdEagleError, TransferFailed
from pd_eagle.requests import gate, probe
from pd_eagle.requests.canary import Canary
from pd_eagle.requests.router import Router
from pd_eagle.workers.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pd_eagle.messages import ControlName, EngineInfo
    from pd_eagle.plan.placement import Plan
    from pd_eagle.requests.policy import ServicePolicy
    from pd_eagle.requests.router import Pair
    from pd_eagle.workers.death import Death
    from pd_eagle.workers.launch import Launch
    from pd_eagle.workers.worker import Worker

logger = logging.getLogger(__name__)

Status = Literal["starting", "ready", "degraded", "draining", "failed"]
#: What requests are accepted in.
SERVING: tuple[Status, ...] = ("ready", "degraded")

#: Tries of a pair to carry its first token, before the whole start fails.
_FIRST_PROBES = 5


class Fleet:
    """All workers of one plan. `on_crash` is the supervisor's: it gets an engine's own crash."""

    def __init__(
        self, plan: Plan, policy: ServicePolicy, on_crash: Callable[[Worker, Death], bool]
    ) -> None:
        self.status: Status = "starting"
        #: What every engine can do; None before the first start is over.
        self.limits: EngineInfo | None = None
        self.supervisor = Supervisor(plan, self.update, policy.restarts, on_crash)
        self.router = Router(self.workers)
        self.canary = Canary(
            self.router, self.workers, probe.carry_token, self.update, policy.canary_interval_s
        )
        self._changed = asyncio.Event()
        self._unserved_since: float | None = None

    @property
    def workers(self) -> list[Worker]:
        return self.supervisor.workers

    # --- life

    async def start(self, launch: Callable[[str, Path], Launch]) -> None:
        """Start all workers and carry a prompt over every pair.

        Raises `StartFailed` when a worker cannot start, or the first error of a pair's token.
        """
        began = time.monotonic()
        try:
            await self.supervisor.start(launch)
            logger.info("%d workers up after %.1f s", len(self.workers), time.monotonic() - began)
            await asyncio.gather(*(self._first_probe(pair) for pair in self.router.all_pairs()))
        except BaseException:
            self.status = "failed"
            await self.supervisor.stop()
            raise
        self.learn_limits()
        self.canary.start()
        self.update()

    async def _first_probe(self, pair: Pair) -> None:
        for tries_left in reversed(range(_FIRST_PROBES)):
            try:
                await self.canary.probe(pair)
            except TransferFailed as error:
                if not tries_left:
                    raise
                logger.warning("%s did not carry its first token: %s", pair.name, error)
            else:
                return

    async def control(
        self, name: ControlName, arguments: dict[str, Any] | None = None, *, timeout_s: float
    ) -> dict[str, Any]:
        """Have every engine that serves do `name`; return what each says, by worker.

        Raises `EngineError` for one that fails, `WorkerDied` for one that dies of it,
        `DeadlineExceeded`; then others may have done it. `NotServing` where none serves.
        """
        serving = [worker for worker in self.workers if worker.state in ("ready", "suspect")]
        if not serving:
            raise NotServing(f"{name}: the service is {self.status}, no engine serves")
        asked = (worker.control(name, arguments or {}) for worker in serving)
        try:
            async with asyncio.timeout(timeout_s):
                said = await asyncio.gather(*asked, return_exceptions=True)
        except TimeoutError:
            raise DeadlineExceeded(f"{name}: not done within {timeout_s:g} s") from None
        for worker, found in zip(serving, said, strict=True):
            if isinstance(found, PdEagleError):
                raise type(found)(f"{worker.name}: {found}")
            if isinstance(found, BaseException):
                raise found
        return {worker.name: found for worker, found in zip(serving, said, strict=True)}

    def learn_limits(self) -> None:
        self.limits = gate.smallest([w.info for w in self.workers if w.info is not None])

    def drain(self) -> None:
        """Let the status be `draining` from here on."""
        self.status = "draining"

    async def stop(self) -> None:
        self._wake()
        await self.canary.stop()
        await self.supervisor.stop()

    # --- status

    def update(self) -> None:
        """Judge the status again: a worker or a link is not what it was."""
        if self.status != "draining":
            self.status = self._judge()
        if self.status in ("starting", "failed"):
            self._unserved_since = self._unserved_since or time.monotonic()
        else:
            self._unserved_since = None
        self._wake()

    def _judge(self) -> Status:
        working, pairs = self.router.working_pairs(), self.router.all_pairs()
        if all(w.state == "ready" for w in self.workers) and len(working) == len(pairs):
            return "ready"
        if working:
            return "degraded"
        # A broken link is probed again as long as both its ends are there.
        return "starting" if self.supervisor.recovering() or pairs else "failed"

    @property
    def unserved_s(self) -> float:
        """How long no pair has worked, after the first start; 0 while one does, or in a drain."""
        since = self._unserved_since
        return 0.0 if since is None or self.limits is None else time.monotonic() - since

    def failed_share(self, limit_s: float) -> float:
        """Return how much of `limit_s` no pair has worked for; 1 when the time is up.

        While workers are being restarted it is at least twice as long as a start has taken: a large
        model is loaded for minutes, and not sooner by another process.
        """
        if self.supervisor.recovering():
            limit_s = max(limit_s, 2 * self.supervisor.longest_start_s)
        return self.unserved_s / limit_s

    # --- changes

    @property
    def changed(self) -> asyncio.Event:
        """An event that is set at the next change: take it before the look that may be outdated."""
        return self._changed

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
