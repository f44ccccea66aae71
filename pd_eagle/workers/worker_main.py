"""The child's side of a worker: one engine, one socket, one task a request.

It starts the engine that the first frame describes, then serves messages until the front sends stop
or is gone. It knows no other worker and nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import pkgutil
import signal
import socket
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pd_eagle.errors import EngineError, StartFailed
from pd_eagle.messages import (
    Abort,
    Control,
    ControlResult,
    Delta,
    Failed,
    Ping,
    Pong,
    Ready,
    StartFailure,
    Stop,
    Submit,
    ToWorker,
)
from pd_eagle.workers import engine_metrics, frames, grammar_dead_ends
from pd_eagle.workers.channel import Channel
from pd_eagle.workers.lifeline import lead_group_bound_to

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from pd_eagle.workers.engine import Engine

logger = logging.getLogger(__name__)


class WorkerSpec(msgspec.Struct, frozen=True):
    """The first frame that a worker's process receives: which engine to start.

    `factory` is "module:function", called as `function(engine_args, fork=…) -> Engine`;
    `temp_dir` is this worker's alone.
    """

    engine_args: dict[str, Any]
    temp_dir: str
    factory: str = "pd_eagle.workers.engine:start"


def run(data: socket.socket, lifeline: socket.socket, log_fd: int, *, fork: bool) -> None:
    """Be a worker's process from its first line to its last; never returns."""
    lead_group_bound_to(lifeline)
    # The engine's children must not hold the socket open when this process has died.
    os.register_at_fork(after_in_child=data.close)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    os.close(log_fd)
    # A forked worker has the zygote's handlers; SGLang sets up its own logging when it starts.
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s %(name)s %(message)s", force=True
    )
    faulthandler.enable()  # its output tells a crash from a kill
    exit_code = 1
    try:
        exit_code = _start_and_serve(data, fork=fork)
    except StartFailed:  # a process of the engine failed and has printed why
        traceback.print_exc()
    except BaseException:
        # SGLang's own wording, by which the front recognises a crash of the engine.
        sys.stderr.write(f"The engine's host process hit an exception: {traceback.format_exc()}")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # At once: SGLang's exit handlers may linger 10 s. The front ends what is left of the group.
        os._exit(exit_code)


def _start_and_serve(data: socket.socket, *, fork: bool) -> int:
    spec = frames.receive(data, WorkerSpec)
    os.environ.update(grammar_dead_ends.VARIABLES)
    os.environ["TMPDIR"] = spec.temp_dir
    tempfile.tempdir = None  # forget what was worked out before the fork
    engine_metrics.write_below(Path(spec.temp_dir))
    try:
        engine = pkgutil.resolve_name(spec.factory)(spec.engine_args, fork=fork)
    except Exception as error:
        if not isinstance(error, StartFailed):  # then the engine's own process has printed why
            traceback.print_exc()
        frames.send(data, [StartFailure(f"{type(error).__name__}: {error}")])
        return 3
    server = _Server(engine)
    engine.event_loop().run_until_complete(server.serve(data))
    engine.shutdown()
    return 0


class _Server:
    """Serves one front over one channel."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stopped = asyncio.Event()
        self._channel: Channel[ToWorker] = Channel(
            ToWorker, self._on_message, self._on_eof, self._on_unsendable
        )

    async def serve(self, data: socket.socket) -> None:
        await self._channel.attach(data)
        self._channel.send(Ready(self._engine.info))
        await self._stopped.wait()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._channel.close()

    def _on_message(self, message: ToWorker) -> None:
        match message:
            case Submit():
                self._begin(message.request.rid, self._generate(message))
            case Abort(rid):
                if task := self._tasks.get(rid):
                    task.cancel()
            case Ping(seq):
                self._channel.send(Pong(seq, self._engine.load()))
            case Control():
                self._begin(f"control {message.seq}", self._control(message))
            case Stop():
                self._stopped.set()

    def _on_unsendable(self, message: Any, why: str) -> Failed | ControlResult | None:
        if isinstance(message, ControlResult):
            return ControlResult(message.seq, error=f"what the engine said cannot be sent: {why}")
        if not isinstance(message, Delta):
            logger.error("%s is not sent: %s", type(message).__name__, why)
            return None
        if task := self._tasks.get(message.rid):
            task.cancel()
        return Failed(message.rid, EngineError.code, f"a result cannot be sent: {why}")

    def _on_eof(self) -> None:
        if not self._stopped.is_set():  # else it is our own close, and the engine shuts down next
            # The lifeline has most likely ended this process already.
            os.killpg(0, signal.SIGKILL)

    def _begin(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._tasks[name] = task = asyncio.get_running_loop().create_task(work, name=name)
        task.add_done_callback(lambda _: self._tasks.pop(name, None))

    async def _generate(self, submit: Submit) -> None:
        # Cancelling this task is the abort: SGLang drops an abort_request for a rid that it has
        # not registered yet, a cancelled iteration has no such hole (0.5.23).
        rid = submit.request.rid
        try:
            async for event in self._engine.generate(submit):
                self._channel.send(event)
        except Exception as error:
            logger.exception("request %s failed in the engine", rid)
            self._channel.send(Failed(rid, EngineError.code, f"{type(error).__name__}: {error}"))

    async def _control(self, control: Control) -> None:
        try:
            value = await self._engine.control(control.name, control.arguments)
            self._channel.send(ControlResult(control.seq, value))
        except Exception as error:
            logger.exception("%s failed in the engine", control.name)
            why = f"{type(error).__name__}: {error}"
            self._channel.send(ControlResult(control.seq, error=why))


def main(argv: list[str]) -> None:
    """Run a spawned worker: `python -m pd_eagle.workers.worker_main DATA_FD LIFELINE_FD LOG_FD`."""
    data_fd, lifeline_fd, log_fd = map(int, argv)
    run(socket.socket(fileno=data_fd), socket.socket(fileno=lifeline_fd), log_fd, fork=False)


if __name__ == "__main__":
    main(sys.argv[1:])
