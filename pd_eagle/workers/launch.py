"""How a worker's process is started: what every launcher gives the front, and the one that spawns.

Forked or spawned, the front has a pid that leads its own process group, a data socket, a lifeline
and the process's output. It does not know what the process does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from pd_eagle.errors import StartFailed
from pd_eagle.workers import signals
from pd_eagle.workers.fork_safety import private_pipe, private_socketpair
from pd_eagle.workers.lifeline import bind_group
from pd_eagle.workers.process_exit import reap_group, wait_ended

if TYPE_CHECKING:
    import socket
    from collections.abc import Coroutine, Mapping
    from pathlib import Path

# A cancelled launch waits no longer than this; a process that comes later is ended all the same.
_CANCELLED_LAUNCH_S = 2.0


@dataclass(slots=True)
class WorkerProcess:
    """A started worker process, as the front holds it.

    `exit_status` is the wait status once known (None: not told, or not our child).
    `spawned_because` says why it was not forked from a zygote; None: it was.
    """

    pid: int
    data: socket.socket
    lifeline: socket.socket
    output_fd: int
    spawned_because: str | None = None
    exited: asyncio.Event = field(default_factory=asyncio.Event)
    exit_status: int | None = None

    def kill_group(self) -> None:
        """Kill the process and all it started; harmless when they are gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def discard(self) -> None:
        """End a process that was never used."""
        self.kill_group()
        self.lifeline.close()
        self.data.close()
        os.close(self.output_fd)

    def record_exit(self, status: int | None) -> None:
        self.exit_status = status
        self.exited.set()

    def describe_exit(self) -> str:
        if self.exit_status is None:
            return "ended"
        code = os.waitstatus_to_exitcode(self.exit_status)
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


class Launcher(Protocol):
    """Makes worker processes."""

    async def launch(self) -> WorkerProcess:
        """Start a process that waits for its `WorkerSpec` on the data socket."""

    def stop_forking(self, failure: str) -> bool:
        """Spawn from now on if `failure`, of a start, is one that only forked engines have.

        True if another start may succeed for that reason.
        """

    async def close(self) -> None:
        """End the processes that the launcher itself keeps running."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start a worker: with which launcher, engine arguments, folder for temporary files and
    bootstrap port (prefill only).
    """

    launcher: Launcher
    engine_args: dict[str, Any]
    temp_dir: Path
    bootstrap_port: int | None = None
    factory: str = "pd_eagle.workers.engine:start"


@dataclass(slots=True)
class Ends:
    """The three descriptors of a new worker: the front's ends and the child's."""

    data: socket.socket
    lifeline: socket.socket
    output_fd: int
    child_data: socket.socket
    child_lifeline: socket.socket
    child_log_fd: int

    @classmethod
    def make(cls) -> Ends:
        data, child_data = private_socketpair()
        lifeline, child_lifeline = private_socketpair()
        output_fd, child_log_fd = private_pipe()
        return cls(data, lifeline, output_fd, child_data, child_lifeline, child_log_fd)

    @property
    def child_fds(self) -> list[int]:
        return [self.child_data.fileno(), self.child_lifeline.fileno(), self.child_log_fd]

    def close_child_ends(self) -> None:
        self.child_data.close()
        self.child_lifeline.close()
        os.close(self.child_log_fd)

    def close(self) -> None:
        """Close the front's ends too: there is no process."""
        self.data.close()
        self.lifeline.close()
        os.close(self.output_fd)

    def process(self, pid: int, spawned_because: str | None = None) -> WorkerProcess:
        return WorkerProcess(pid, self.data, self.lifeline, self.output_fd, spawned_because)


async def uninterrupted(launching: Coroutine[Any, Any, WorkerProcess]) -> WorkerProcess:
    """Return the process that `launching` starts; if the caller is cancelled, none is left."""
    task = asyncio.create_task(launching)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_discard)
        await asyncio.wait({task}, timeout=_CANCELLED_LAUNCH_S)
        raise


def _discard(task: asyncio.Task[WorkerProcess]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().discard()


class SpawnLauncher:
    """Starts each worker as a new Python process, which imports SGLang every time.

    `because` says why workers are not forked.
    """

    def __init__(
        self, environment: Mapping[str, str], because: str = "workers are spawned"
    ) -> None:
        self._environment = dict(environment)
        self.because = because
        self._reapers: set[asyncio.Task[None]] = set()

    async def launch(self) -> WorkerProcess:
        return await uninterrupted(self._launch())

    async def _launch(self) -> WorkerProcess:
        ends = Ends.make()
        try:
            child = await asyncio.to_thread(self._spawn, ends)
        except OSError as error:
            ends.close()
            raise StartFailed(f"a worker's process cannot be started: {error}") from error
        finally:
            ends.close_child_ends()
        process = ends.process(child.pid, self.because)
        reaper = asyncio.create_task(_reap(child, process))
        self._reapers.add(reaper)
        reaper.add_done_callback(self._reapers.discard)
        return process

    def _spawn(self, ends: Ends) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "pd_eagle.workers.worker_main", *map(str, ends.child_fds)]
        with signals.blocked_in_children():
            child = subprocess.Popen(
                command,
                env=self._environment,
                pass_fds=ends.child_fds,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        bind_group(ends.child_lifeline, child.pid)
        return child

    def stop_forking(self, failure: str) -> bool:
        return False

    async def close(self) -> None:
        await asyncio.gather(*self._reapers)


async def _reap(child: subprocess.Popen[bytes], process: WorkerProcess) -> None:
    await wait_ended(child.pid)
    _, status = os.waitpid(child.pid, 0)  # noqa: ASYNC222 - it has ended
    child.returncode = os.waitstatus_to_exitcode(status)
    process.record_exit(status)
    await reap_group(child.pid)
