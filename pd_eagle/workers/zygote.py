"""The front's handle to a zygote: starts it, asks it for workers, says when it is gone.

The zygote is forked from the front where nothing runs there yet, else spawned as a new Python. It
does not know what the workers do, nor what to do without a zygote.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pd_eagle.errors import StartFailed
from pd_eagle.workers import signals, zygote_main
from pd_eagle.workers.channel import Channel
from pd_eagle.workers.fork_check import why_not_fork
from pd_eagle.workers.fork_safety import private_socketpair
from pd_eagle.workers.launch import Ends, WorkerProcess, uninterrupted
from pd_eagle.workers.lifeline import bind_group, lead_group_bound_to
from pd_eagle.workers.process_exit import reap, reap_group, wait_ended, when_ended
from pd_eagle.workers.zygote_main import Exited, Forked, FromZygote, Imported, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

logger = logging.getLogger(__name__)

# A fork takes milliseconds, on a machine out of memory seconds.
_FORK_TIMEOUT_S = 60.0
_CLOSE_TIMEOUT_S = 5.0

#: The step that prepares a zygote for SGLang engines; its argument is their engine arguments.
PRELOAD = "pd_eagle.workers.engine:preload"


@dataclass(slots=True)
class ZygoteProcess:
    """A zygote that was started and may still import: its pid and the front's sockets."""

    pid: int
    requests: socket.socket
    answers: socket.socket
    lifeline: socket.socket

    def kill(self) -> None:
        """Kill the zygote, which is not reaped yet; workers that it has forked live on.

        Closing its lifeline is not enough: it may have been stopped before it listened to that.
        """
        self.lifeline.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def discard(self) -> None:
        """End a zygote that was never used."""
        self.kill()
        for end in (self.requests, self.answers):
            end.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def fork_from_here(argument: Any, step: str = PRELOAD) -> ZygoteProcess:
    """Call `step`, "module:function", with `argument` in this process, then fork the zygote.

    What the step imports is then imported once for the front and all workers.
    Only for a process in which nothing runs yet. Raises `ForkRefused` where a fork is not safe.
    """
    zygote_main.prepare(step, argument)
    if reason := why_not_fork():
        raise ForkRefused(f"the zygote cannot be forked from this process: {reason}")
    ours, its = _socketpairs(socket.socketpair)
    with signals.blocked_in_children():
        pid = zygote_main.fork()
        if pid == 0:
            for end in ours:
                end.close()
            lead_group_bound_to(its[2])
            zygote_main.run(*its)
    for end in its:
        end.close()
    return ZygoteProcess(pid, *ours)


def spawn(environment: Mapping[str, str], argument: Any, step: str = PRELOAD) -> ZygoteProcess:
    """Start a zygote as a new Python with `environment`; for a process that has threads.

    It calls `step` with `argument`, which must be JSON, before it says that it is ready.
    """
    ours, its = _socketpairs(private_socketpair)
    fds = [end.fileno() for end in its]
    with signals.blocked_in_children():
        child = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "pd_eagle.workers.zygote_main",
                *map(str, fds),
                step,
                json.dumps(argument),
            ],
            env=dict(environment),
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    bind_group(its[2], child.pid)
    child.returncode = 0  # reaped by pid below, not by Popen
    for end in its:
        end.close()
    return ZygoteProcess(child.pid, *ours)


_ThreeSockets = tuple[socket.socket, socket.socket, socket.socket]


def _socketpairs(
    make: Callable[[], tuple[socket.socket, socket.socket]],
) -> tuple[_ThreeSockets, _ThreeSockets]:
    """Return the front's and the zygote's ends: requests, answers, lifeline."""
    first, second, third = (make() for _ in range(3))
    return (first[0], second[0], third[0]), (first[1], second[1], third[1])


class ForkRefused(Exception):
    """A process must not be forked; workers can be spawned instead."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ZygoteLauncher:
    """Asks one zygote for workers. `imports_timeout_s` limits its imports.

    Raises `StartFailed` when the zygote is gone or does not answer in time, and is killed then;
    `ForkRefused` when it may not fork.
    """

    def __init__(self, process: ZygoteProcess, imports_timeout_s: float | None = None) -> None:
        self._process = process
        self._imports_timeout_s = imports_timeout_s
        self._closing = False
        self._channel: Channel[FromZygote] = Channel(FromZygote, self._on_message, self._on_eof)
        self._imported: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._forking = asyncio.Lock()
        self._forked: asyncio.Future[int] | None = None
        self._workers: dict[int, WorkerProcess] = {}
        self._early_exits: dict[int, int] = {}
        self._reaped = False
        self._gone = asyncio.Event()
        self._reaping: set[asyncio.Task[None]] = set()

    async def ready(self) -> str | None:
        """Wait for the zygote's imports; return why it may not fork, None if it may."""
        await self._channel.attach(self._process.answers)
        try:
            async with asyncio.timeout(self._imports_timeout_s):
                return await self._imported
        except TimeoutError:
            why = f"no imports within {self._imports_timeout_s:g} s (START_TIMEOUT_S)"
            raise self._hangs(why) from None

    async def launch(self) -> WorkerProcess:
        return await uninterrupted(self._launch())

    async def _launch(self) -> WorkerProcess:
        async with self._forking:
            ends = Ends.make()
            try:
                pid = await self._fork(ends)
            except BaseException:
                ends.close()
                raise
        process = self._workers[pid] = ends.process(pid)
        if pid in self._early_exits:
            process.record_exit(self._early_exits.pop(pid))
        return process

    async def _fork(self, ends: Ends) -> int:
        try:
            if self._gone.is_set():
                raise StartFailed("the zygote is gone")
            socket.send_fds(self._process.requests, [b"w"], ends.child_fds)
        except OSError as error:
            raise StartFailed(f"the zygote is gone: {error}") from error
        finally:
            ends.close_child_ends()
        self._forked = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(_FORK_TIMEOUT_S):
                return await self._forked
        except TimeoutError:
            raise self._hangs(f"no fork within {_FORK_TIMEOUT_S:g} s") from None

    def _hangs(self, why: str) -> StartFailed:
        """Kill the zygote; its workers live on."""
        logger.error("the zygote (pid %d) is killed: %s", self._process.pid, why)
        self._gone.set()
        self._process.kill()
        return StartFailed(f"the zygote hangs: {why}")

    def _on_message(self, message: FromZygote) -> None:
        match message:
            case Imported(unsafe):
                if not self._imported.done():  # else the waiting task was cancelled
                    self._imported.set_result(unsafe)
            case Forked(pid):
                assert self._forked is not None
                if not self._forked.done():  # else it came after the timeout
                    self._forked.set_result(pid)
            case Refused(reason, safe):
                assert self._forked is not None
                said = f"the zygote may not fork: {reason}"
                if not self._forked.done():
                    self._forked.set_exception(StartFailed(said) if safe else ForkRefused(said))
            case Exited(pid, status):
                if pid in self._workers:
                    self._workers.pop(pid).record_exit(status)
                else:
                    self._early_exits[pid] = status

    def _on_eof(self) -> None:
        self._gone.set()
        gone = StartFailed("the zygote died")
        for waiting in (self._imported, self._forked):
            if waiting is not None and not waiting.done():
                waiting.set_exception(gone)
        for process in self._workers.values():  # they live on, and nobody reports their exits
            when_ended(process.pid, partial(self._record_exit, process))

    def _record_exit(self, process: WorkerProcess) -> None:
        task = asyncio.get_running_loop().create_task(self._reap(process))
        self._reaping.add(task)
        task.add_done_callback(self._reaping.discard)

    async def _reap(self, process: WorkerProcess) -> None:
        process.record_exit(reap(process.pid))
        await reap_group(process.pid)

    def stop_forking(self, failure: str) -> bool:
        return False

    @property
    def gone(self) -> bool:
        return self._gone.is_set()

    async def close(self) -> None:
        """End the zygote, and all workers forked from it that still run.

        It is asked first, and killed after a few seconds; at once by a second call.
        """
        if self._reaped:
            return  # its pid may be another process' by now
        self._process.requests.close()
        if self._closing or self._imported.cancelled() or not self._imported.done():
            self._process.kill()  # it does not read requests, or not yet
        self._closing = True
        try:
            await asyncio.wait_for(wait_ended(self._process.pid), _CLOSE_TIMEOUT_S)
        except TimeoutError:
            logger.warning("the zygote (pid %d) does not end: it is killed", self._process.pid)
            self._process.kill()
            await wait_ended(self._process.pid)  # SIGKILL also ends a stopped process
        self._process.lifeline.close()
        self._channel.close()
        self._process.answers.close()
        for process in self._workers.values():
            process.kill_group()
            await process.exited.wait()
        await asyncio.gather(*self._reaping)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._process.pid, 0)  # noqa: ASYNC222 - it has ended
        self._reaped = True
