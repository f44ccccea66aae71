"""A front in a thread of this process, and every way in which it ends.

Its owner may call `stop`, be collected, fail while it starts, be forked, or reach the end of the
program. It does not know what requests look like.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import logging
import os
import threading
from typing import TYPE_CHECKING, Any

from pd_eagle.errors import NotServing
from pd_eagle.front import Front, spawn_zygote
from pd_eagle.loops import new_event_loop
from pd_eagle.workers.fork_safety import private_loop

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from concurrent.futures import Future

    from pd_eagle.plan.deployment import Deployment
    from pd_eagle.workers.zygote import ZygoteProcess

logger = logging.getLogger(__name__)

#: Longest orderly stop, beside the drain; what is left then is killed.
_STOP_TIMEOUT_S = 30.0
#: Longest wait for what has been killed.
_KILLED_TIMEOUT_S = 5.0
#: Every front of this process that has not ended.
_living: set[FrontThread] = set()


class FrontThread:
    """One front, its event loop, and the daemon thread that runs it."""

    def __init__(
        self, deployment: Deployment, api: Future[Any], zygote: ZygoteProcess | None = None
    ) -> None:
        """Make the front, and the zygote's process where `zygote` is not one that was spawned
        before for the same deployment; nothing of them is left if this raises.

        `api` is the front's: loaded by the owner while the engines start.
        """
        await_endings()
        self.drain_timeout_s = deployment.settings.drain_timeout_s
        self._pid = os.getpid()
        self._loop_name = deployment.settings.event_loop
        self._abandoned = False
        self._ending: Future[bool] | None = None
        self._lock = threading.Lock()
        used = deployment.fork_refusal or zygote or spawn_zygote(deployment)
        try:
            self._start_loop()
            try:
                self.front: Front[Any] = self.call(_make_front(deployment, used, api))
            except BaseException:
                self._close_loop()
                raise
        except BaseException:
            if not isinstance(used, str):
                used.discard()
            raise
        _living.add(self)

    # --- calls into the loop

    @property
    def ours(self) -> bool:
        """Whether this process created it, not one forked from that."""
        return os.getpid() == self._pid

    def check_process(self) -> None:
        """Raise `NotServing` in a forked child, where no thread runs the loop."""
        if not self.ours:
            raise NotServing(
                f"this PDEngine belongs to process {self._pid}, and process {os.getpid()} was "
                "forked from it: wanted its calls in that process alone. Start other processes "
                'with multiprocessing\'s method "spawn", and give them texts, not the engine'
            )

    def check_usable(self) -> None:
        """Raise `NotServing` in a forked child, and after the stop."""
        self.check_process()
        if self.ended:
            raise NotServing("this PDEngine has been shut down")

    @property
    def ended(self) -> bool:
        return self._ending is not None

    def submit(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run `coroutine` in the thread's loop and wait; an interrupt of the wait cancels it."""
        future = self.submit(coroutine)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    # --- the end

    def stop(self, drain_timeout_s: float = 0.0) -> bool:
        """Stop every engine, then the thread; False if requests were cut off.

        Further calls, from any thread, wait for the first and return what it returns. What does not
        stop in time is killed; so is everything when the wait is interrupted.
        """
        with self._lock:
            first, self._ending = self._ending is None, self._ending or concurrent.futures.Future()
        if not first:
            return self._ending.result(drain_timeout_s + _STOP_TIMEOUT_S + _KILLED_TIMEOUT_S)
        drained = False
        try:
            drained = self._stop_front(drain_timeout_s)
        finally:
            self._close_loop()
            _living.discard(self)
            self._ending.set_result(drained)
            if self.front.tracing is not None:
                self.front.tracing.shutdown()
        return drained

    def _stop_front(self, drain_timeout_s: float) -> bool:
        stopping = self.submit(self.front.stop(drain_timeout_s))
        try:
            return bool(stopping.result(drain_timeout_s + _STOP_TIMEOUT_S))
        except concurrent.futures.TimeoutError:
            logger.error("the engines did not stop within %g s: they are killed", _STOP_TIMEOUT_S)
            return False
        finally:
            if not stopping.done():  # an interrupt, or the time is up
                self.front.kill()
                concurrent.futures.wait([stopping], _KILLED_TIMEOUT_S)

    def abandon(self) -> None:
        """End everything on behalf of an owner that was collected; never waits.

        A collection may come anywhere, in an event loop or under a lock that the front needs.
        """
        if self.ours and not self.ended:
            self._abandoned = True
            threading.Thread(target=self.stop, name="pd_eagle-end").start()

    # --- the loop's thread

    def _start_loop(self) -> None:
        self._loop = private_loop(new_event_loop(self._loop_name, may_be_forked=True))
        # A daemon: it must not keep a script from ending.
        self._thread = threading.Thread(target=self._loop.run_forever, name="pd_eagle", daemon=True)
        self._thread.start()

    def _close_loop(self) -> None:
        # Cancelled first, so that callers in other threads do not wait for ever.
        cancelling = self.submit(_cancel_all())
        concurrent.futures.wait([cancelling], _KILLED_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_KILLED_TIMEOUT_S)
        if self._thread.is_alive():
            logger.error("the front's loop does not end: its thread is left behind")
        else:
            self._loop.close()


def await_endings() -> None:
    """Wait until the fronts that are ending have ended: a new one may need their memory."""
    for living in list(_living):
        if living.ended or living._abandoned:
            with contextlib.suppress(TimeoutError):  # then the start says what is still taken
                living.stop()


def _end_all() -> None:
    for living in list(_living):
        if living.ours:
            living.stop()


async def _make_front(
    deployment: Deployment, zygote: ZygoteProcess | str, api: Future[Any]
) -> Front[Any]:
    return Front(deployment, zygote, api)  # its events belong to the loop that runs it


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


atexit.register(_end_all)
