"""The zygote's own process: SGLang imported and nothing started; workers are forked from it.

A fork costs milliseconds where a new Python process pays SGLang's imports three times over. It is
safe only while CUDA is not initialised in the forking process and no thread runs in it that may
hold a lock: that is checked before every fork. It knows nothing of engines, plans or requests.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import pkgutil
import select
import signal
import socket
import sys
import traceback
import warnings
from typing import Any

import msgspec

from pd_eagle.workers import frames, gc_freezing, signals
from pd_eagle.workers.fork_check import why_not_fork
from pd_eagle.workers.lifeline import lead_group_bound_to


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


def fork() -> int:
    """Fork this process, as `os.fork`, without its warning of threads."""
    with warnings.catch_warnings():
        # Python 3.12 warns of every thread, also of those that `fork_check` found harmless.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def prepare(step: str, argument: Any) -> None:
    """Call `step`, "module:function", with `argument`: it imports what forked workers share."""
    # Imports leave no garbage, and looking for it takes a fifth of their time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        pkgutil.resolve_name(step)(argument)
    finally:
        if collecting:
            gc.enable()
    gc_freezing.freeze()


def run(requests: socket.socket, answers: socket.socket, lifeline: socket.socket) -> None:
    """Be the zygote until the other end of `requests` is closed; never returns."""
    signals.block()
    _adopt_orphans()
    _Zygote(requests, answers, lifeline).serve()
    os._exit(0)


_PR_SET_CHILD_SUBREAPER = 36  # Linux, sys/prctl.h


def _adopt_orphans() -> None:
    # The children of a killed worker would become those of the container's first process, which
    # may not reap them.
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
            answer = Refused(reason) if reason else Forked(self._fork_worker(*fds))
        except OSError as error:  # out of processes or of memory
            answer = Refused(str(error), safe=True)
        self._answer(answer)
        for fd in fds:
            os.close(fd)
        return True

    def _fork_worker(self, data_fd: int, lifeline_fd: int, log_fd: int) -> int:
        pid = fork()
        if pid:
            self._workers.add(pid)
            return pid
        try:
            self._become_worker(data_fd, lifeline_fd, log_fd)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)  # on any failure: it must not continue as a second zygote

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


def main(argv: list[str]) -> None:
    """Run a spawned zygote: `python -m … REQUESTS ANSWERS LIFELINE STEP ARGUMENT`.

    The first three are descriptors.
    """
    requests, answers, lifeline = (socket.socket(fileno=int(fd)) for fd in argv[:3])
    lead_group_bound_to(lifeline)
    step, argument = argv[3:]
    prepare(step, json.loads(argument))
    run(requests, answers, lifeline)


if __name__ == "__main__":
    main(sys.argv[1:])
