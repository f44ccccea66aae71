"""The process that has SGLang imported and nothing started; workers are forked from it.

A fork costs milliseconds where a new Python pays SGLang's imports three times over. It is right
only while CUDA is untouched in the forking process and no thread runs that may hold a lock: that is
checked before every fork. The zygote knows nothing of engines, plans or requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import logging
import os
import pkgutil
import re
import select
import signal
import socket
import subprocess
import sys
import traceback
import warnings
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from pd_eagle.errors import StartFailed
from pd_eagle.workers import frames, gc_freezing, signals
from pd_eagle.workers.channel import Channel
from pd_eagle.workers.fork_check import why_not_fork
from pd_eagle.workers.fork_safety import private_socketpair
from pd_eagle.workers.launch import (
    Ends,
    SpawnLauncher,
    WorkerProcess,
    uninterrupted,
)
from pd_eagle.workers.lifeline import bind_group, lead_group_bound_to
from pd_eagle.workers.process_exit import reap, reap_group, wait_ended, when_ended

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

logger = logging.getLogger(__name__)

# A fork takes milliseconds, on a machine out of memory seconds.
_FORK_TIMEOUT_S = 60.0
_CLOSE_TIMEOUT_S = 5.0

#: The step that makes a zygote for SGLang engines; its argument is their engine arguments.
PRELOAD = "pd_eagle.workers.engine:preload"


class Imported(msgspec.Struct, frozen=True, tag="imported"):
    """The imports are done; `unsafe` says why nothing may be forked, None if it may."""

    unsafe: str | None


class Forked(msgspec.Struct, frozen=True, tag="forked"):
    pid: int


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """No fork: it is not `safe` to fork, or the machine has no room for a process."""

    reason: str
    safe: bool = False


class Exited(msgspec.Struct, frozen=True, tag="exited"):
    pid: int
    status: int


FromZygote = Imported | Forked | Refused | Exited


def _fork() -> int:
    with warnings.catch_warnings():
        # Python 3.12 warns of every thread, those that were found harmless too.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _prepare(step: str, argument: Any) -> None:
    # The collector finds no garbage in what is imported: looking for it takes a fifth of the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        pkgutil.resolve_name(step)(argument)
    finally:
        if collecting:
            gc.enable()
    gc_freezing.settle()


# --- the zygote's own side


def run(requests: socket.socket, answers: socket.socket, lifeline: socket.socket) -> None:
    """Be the zygote until `requests` hangs up; never returns."""
    signals.block()
    _adopt_orphans()
    _Zygote(requests, answers, lifeline).serve()
    os._exit(0)


_PR_SET_CHILD_SUBREAPER = 36  # Linux, sys/prctl.h


def _adopt_orphans() -> None:
    # What a killed worker leaves behind would go to the container's first process, which need not
    # reap it.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class _Zygote:
    def __init__(
        self, requests: socket.socket, answers: socket.socket, lifeline: socket.socket
    ) -> None:
        self._requests = requests
        self._answers = answers
        self._lifeline = lifeline
        self._workers: set[int] = set()
        self._wakeup, self._wakeup_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def serve(self) -> None:
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup_writer, warn_on_full_buffer=False)
        self._answer(Imported(why_not_fork()))
        poll = select.poll()
        poll.register(self._requests, select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._wakeup in ready:
                self._reap()
            if self._requests.fileno() in ready and not self._serve_request():
                break
        for pid in self._workers:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def _answer(self, message: FromZygote) -> None:
        with contextlib.suppress(BrokenPipeError):
            frames.send(self._answers, [message])

    def _reap(self) -> None:
        os.read(self._wakeup, 4096)
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid in self._workers:
                    self._workers.discard(pid)
                    self._answer(Exited(pid, status))

    def _serve_request(self) -> bool:
        message, fds, _, _ = socket.recv_fds(self._requests, 1, 3)
        if not message:
            return False
        reason = why_not_fork()
        try:
            answer = Refused(reason) if reason else Forked(self._fork(*fds))
        except OSError as error:  # out of processes or of memory
            answer = Refused(str(error), safe=True)
        self._answer(answer)
        for fd in fds:
            os.close(fd)
        return True

    def _fork(self, data_fd: int, lifeline_fd: int, log_fd: int) -> int:
        pid = _fork()
        if pid:
            self._workers.add(pid)
            return pid
        try:
            self._become_worker(data_fd, lifeline_fd, log_fd)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)  # whatever failed, it must not go on as a second zygote

    def _become_worker(self, data_fd: int, lifeline_fd: int, log_fd: int) -> None:
        from pd_eagle.workers import worker_main

        signal.set_wakeup_fd(-1)
        for number in (*signals.STOP, signal.SIGCHLD):  # the stop signals stay blocked
            signal.signal(number, signal.SIG_DFL)
        for fd in (self._wakeup, self._wakeup_writer):
            os.close(fd)
        for end in (self._requests, self._answers, self._lifeline):
            end.close()
        data, lifeline = socket.socket(fileno=data_fd), socket.socket(fileno=lifeline_fd)
        worker_main.run(data, lifeline, log_fd, fork=True)


# --- the front's side


@dataclass(slots=True)
class ZygoteProcess:
    """A zygote that was started, before anybody waits for it: pid and the front's sockets."""

    pid: int
    requests: socket.socket
    answers: socket.socket
    lifeline: socket.socket

    def discard(self) -> None:
        """End a zygote that nobody has begun to use."""
        self.lifeline.close()  # the kernel kills it
        for end in (self.requests, self.answers):
            end.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def fork_from_here(argument: Any, step: str = PRELOAD) -> ZygoteProcess:
    """Call `step`, "module:function", with `argument` here, then fork the zygote.

    What the step loads is then paid once in all.
    Only for a process in which nothing runs yet. Raises `ForkRefused` where a fork is not safe.
    """
    _prepare(step, argument)
    if reason := why_not_fork():
        raise ForkRefused(f"the zygote cannot be forked from this process: {reason}")
    ours, its = _socketpairs(socket.socketpair)
    with signals.blocked_in_children():
        pid = _fork()
        if pid == 0:
            for end in ours:
                end.close()
            lead_group_bound_to(its[2])
            run(*its)
    for end in its:
        end.close()
    return ZygoteProcess(pid, *ours)


def spawn(environment: Mapping[str, str], argument: Any, step: str = PRELOAD) -> ZygoteProcess:
    """Start a zygote as a new Python with `environment`; for a process that has threads.

    It does `step` with `argument`, which must be JSON, before it says that it is ready.
    """
    ours, its = _socketpairs(private_socketpair)
    fds = [end.fileno() for end in its]
    with signals.blocked_in_children():
        child = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "pd_eagle.workers.zygote",
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
    """Nothing may be forked from a process; what was to be forked can be spawned."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ZygoteLauncher:
    """Asks a zygote for workers. Raises `StartFailed` when it is gone or does not answer in time:
    then it is killed; and `ForkRefused` when it may not fork. `imports_timeout_s` is how long it
    may import.
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
        self._process.lifeline.close()
        return StartFailed(f"the zygote hangs: {why}")

    def _on_message(self, message: FromZygote) -> None:
        match message:
            case Imported(unsafe):
                if not self._imported.done():  # else whoever waited was cancelled
                    self._imported.set_result(unsafe)
            case Forked(pid):
                assert self._forked is not None
                if not self._forked.done():  # else it came too late, and the zygote is killed
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
        for process in self._workers.values():  # they live on; nobody else says when they end
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
        """End the zygote, and whatever was forked from it and still runs.

        It is asked first, and killed after a few seconds; at once by a second call.
        """
        self._process.requests.close()
        if self._closing or self._imported.cancelled() or not self._imported.done():
            self._process.lifeline.close()  # it does not listen, or not yet
        self._closing = True
        try:
            await asyncio.wait_for(wait_ended(self._process.pid), _CLOSE_TIMEOUT_S)
        except TimeoutError:
            logger.warning("the zygote (pid %d) does not end: it is killed", self._process.pid)
            self._process.lifeline.close()
            await wait_ended(
                self._process.pid
            )  # nothing survives SIGKILL, a stopped process neither
        self._process.lifeline.close()
        self._channel.close()
        self._process.answers.close()
        for process in self._workers.values():
            process.kill_group()
            await process.exited.wait()
        await asyncio.gather(*self._reaping)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._process.pid, 0)  # noqa: ASYNC222 - it has ended


class LastingZygote:
    """Asks a zygote for workers, makes a new one when it has died, and spawns where it refuses.

    Workers of the dead one live on. Raises `StartFailed` as `ZygoteLauncher` does.
    """

    def __init__(
        self,
        first: ZygoteLauncher,
        again: Callable[[], ZygoteProcess],
        spawning: SpawnLauncher,
        imports_timeout_s: float | None = None,
    ) -> None:
        self._zygotes = [first]
        self._imports_timeout_s = imports_timeout_s
        self._again = again
        self._spawning = spawning
        self._distrusted = False
        self._renewing = asyncio.Lock()

    async def launch(self) -> WorkerProcess:
        if self._distrusted:
            return await self._spawning.launch()
        try:
            async with self._renewing:
                if self._zygotes[-1].gone:
                    await self._renew()
            return await self._zygotes[-1].launch()
        except ForkRefused as refusal:
            logger.warning("a worker is spawned, not forked: %s", refusal.message)
            self._spawning.because = refusal.message
            return await self._spawning.launch()

    def stop_forking(self, failure: str) -> bool:
        if self._distrusted or not _FORK_FAULT.search(failure):
            return False
        self._distrusted = True
        self._spawning.because = f"a forked engine failed: {failure.splitlines()[0]}"
        logger.warning("workers are spawned from now on: %s", self._spawning.because)
        return True

    async def _renew(self) -> None:
        logger.warning("the zygote died: a new one is made")
        making = asyncio.create_task(asyncio.to_thread(self._again))
        try:
            zygote = ZygoteLauncher(await asyncio.shield(making), self._imports_timeout_s)
        except asyncio.CancelledError:
            (await making).discard()
            raise
        self._zygotes.append(zygote)  # `close` may come before it is ready
        reason = await zygote.ready()
        if reason:
            raise ForkRefused(f"the new zygote may not fork: {reason}")

    async def close(self) -> None:
        for zygote in self._zygotes:
            await zygote.close()
        await self._spawning.close()


# What CUDA and torch say in a child whose parent had initialised CUDA.
_FORK_FAULT = re.compile(
    r"in forked subprocess|CUDA driver initialization failed|CUDA error: initialization error"
    r"|cudaErrorInitializationError|CUDA_ERROR_NOT_INITIALIZED"
)


def main(argv: list[str]) -> None:
    """Run a spawned zygote: `python -m … REQUESTS ANSWERS LIFELINE STEP ARGUMENT`.

    The first three are descriptors.
    """
    requests, answers, lifeline = (socket.socket(fileno=int(fd)) for fd in argv[:3])
    lead_group_bound_to(lifeline)
    step, argument = argv[3:]
    _prepare(step, json.loads(argument))
    run(requests, answers, lifeline)


if __name__ == "__main__":
    main(sys.argv[1:])
