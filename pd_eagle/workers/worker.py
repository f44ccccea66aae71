"""The front's handle to one worker: one engine in one child process.

It starts the process, sends it requests, calls each request's sink with its events, and reports at
once when the process or one of its schedulers is gone. It does not decide what happens then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from pd_eagle.errors import InvalidRequest, NotServing, PdEagleError, StartFailed, WorkerDied
from pd_eagle.messages import (
    Abort,
    ControlResult,
    Delta,
    Event,
    Failed,
    FromWorker,
    Pong,
    Ready,
    StartFailure,
    Stop,
    Submit,
)
from pd_eagle.workers import death, frames
from pd_eagle.workers.channel import Channel, Traffic
from pd_eagle.workers.death import Death
from pd_eagle.workers.open_requests import OpenRequests
from pd_eagle.workers.output_tail import OutputTail
from pd_eagle.workers.process_exit import wait_all_ended, when_ended
from pd_eagle.workers.process_stat import wait_status
from pd_eagle.workers.questions import Questions
from pd_eagle.workers.worker_main import WorkerSpec
from pd_eagle.workers.worker_state import TRANSITIONS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pd_eagle.messages import ControlName, EngineInfo, Load, Role, ToWorker
    from pd_eagle.plan.placement import WorkerPlan
    from pd_eagle.workers.launch import Launch, WorkerProcess
    from pd_eagle.workers.worker_state import State

logger = logging.getLogger(__name__)
engine_output = logging.getLogger("pd_eagle.engine_output")

_STOP_TIMEOUT_S = 5.0


class Worker:
    """One worker of a plan. All methods belong to the front's event loop."""

    def __init__(self, plan: WorkerPlan, on_death: Callable[[Worker, Death], None]) -> None:
        self.plan = plan
        self.state: State = "starting"
        self.info: EngineInfo | None = None
        self.load: Load | None = None
        self.last_error: str | None = None
        self.restarts = 0
        self.served = 0
        self.start_s: float | None = None
        self._start_began = time.monotonic()
        self.heard_at = self.generated_at = time.monotonic()
        self.bootstrap_port: int | None = None
        self.temp_dir: Path | None = None
        self.traffic = Traffic()
        #: Whether its engine has answered anything since it was started.
        self.proved = False
        self._on_death = on_death
        self._requests = OpenRequests()
        self._questions = Questions(self._send)
        self._process: WorkerProcess | None = None
        self._channel: Channel[FromWorker] | None = None
        self._output: OutputTail | None = None
        self._started: asyncio.Future[EngineInfo] | None = None
        self._eof = False
        self._scheduler_watches: list[Callable[[], None]] = []

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def role(self) -> Role:
        return self.plan.role

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def pids(self) -> list[int]:
        """The host and its schedulers; empty before they are ready."""
        return [self.info.pid, *self.info.scheduler_pids] if self.info else []

    @property
    def back_in_s(self) -> float | None:
        """Seconds until it serves again if this start takes as long as its last one.

        None while it serves, and before its first start is done.
        """
        if self.state not in ("starting", "restarting") or self.start_s is None:
            return None
        since_s = time.monotonic() - self._start_began if self._process else 0.0
        return max(0.0, self.start_s - since_s)

    @property
    def spawned_because(self) -> str | None:
        """Why its processes are spawned, or one of them; None where all are forked."""
        if self._process is None:
            return None
        return self._process.spawned_because or (self.info.spawned_because if self.info else None)

    @property
    def inflight(self) -> int:
        return len(self._requests)

    @property
    def rids(self) -> tuple[str, ...]:
        """The requests in its engine, with those that were aborted recently."""
        return self._requests.rids

    def become(self, state: State) -> None:
        if state not in TRANSITIONS[self.state]:
            raise AssertionError(f"{self.name}: no way from {self.state} to {state}")
        logger.info("%s: %s → %s", self.name, self.state, state)
        self.state = state

    # --- life

    async def start(self, launch: Launch, timeout_s: float | None = None) -> None:
        """Start the process and its engine; returns when it is ready to serve.

        Raises `StartFailed` with the engine's last output as soon as the start cannot succeed, or
        when it takes longer than `timeout_s`.
        """
        self._start_began = time.monotonic()
        self.bootstrap_port, self.temp_dir = launch.bootstrap_port, launch.temp_dir
        self.info, self.load, self._eof, self.proved = None, None, False, False
        self._questions = Questions(self._send)
        self._requests.forget_aborted()
        launch.temp_dir.mkdir(parents=True, exist_ok=True)
        self._process = process = await launch.launcher.launch()
        log_line = partial(engine_output.info, "%s | %s", self.name)
        self._output = OutputTail(process.output_fd, log_line)
        self._started = asyncio.get_running_loop().create_future()
        self._channel = Channel(
            FromWorker, self._on_message, self._on_eof, self._on_unsendable, self.traffic
        )
        spec = WorkerSpec(launch.engine_args, str(launch.temp_dir), launch.factory)
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                frames.send(process.data, spec)  # if it is gone already, EOF says so below
            await self._channel.attach(process.data)
            async with asyncio.timeout(timeout_s):
                self.info = await self._started
        except StartFailed as error:
            raise await self._start_failure(process, str(error)) from None
        except TimeoutError:
            cause = f"not ready within {timeout_s:g} s (START_TIMEOUT_S)"
            raise await self._start_failure(process, cause, ends_itself=False) from None
        except BaseException:
            self._release()
            raise
        self.start_s = time.monotonic() - self._start_began
        self.become("ready")
        self._watch_schedulers(self.info.scheduler_pids)
        if self._eof:
            self.declare_dead("its process ended")

    async def _start_failure(
        self, process: WorkerProcess, cause: str, *, ends_itself: bool = True
    ) -> StartFailed:
        assert self._output is not None
        if ends_itself:  # its own exit code says more than that we killed it
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.exited.wait(), 1.0)
        process.kill_group()
        await self._output.wait_closed(timeout_s=2.0)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.exited.wait(), 1.0)
        said = [line for line in self._output.lines if line.strip()]
        self._release()
        said_why = death.last_exception(said) if ends_itself else None
        self.last_error = f"{said_why or cause} (its process {process.describe_exit()})"
        self.become("failed")
        return death.start_failure(self.name, self.last_error, said)

    async def stop(self) -> None:
        """End the engine and its process: asked first, killed after a few seconds.

        Requests that are still open fail. A second call, while the first waits, kills at once.
        """
        if self._process is None:
            return
        if self.state in ("starting", "restarting"):
            self.kill()  # its event loop does not run yet: it reads no message
        elif self.state not in ("failed", "stopping"):
            self.become("stopping")
            self._fail_requests(NotServing.code, "it is stopping")
            assert self._channel is not None
            self._channel.send(Stop())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.exited.wait(), _STOP_TIMEOUT_S)
        self._release()
        await wait_all_ended(self.info.scheduler_pids if self.info else (), _STOP_TIMEOUT_S)

    def kill(self) -> None:
        """Kill the process and all it started; a start that is under way fails."""
        if self._process is not None:
            self._process.kill_group()

    def _release(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill_group()
        process.lifeline.close()
        for stop_waiting in self._scheduler_watches:
            stop_waiting()
        self._scheduler_watches.clear()
        if self._channel is not None:
            self._channel.abort()
        process.data.close()
        if self._output is not None:
            self._output.close()

    def _watch_schedulers(self, pids: list[int]) -> None:
        # A dead scheduler takes its host with it only seconds later (SGLang 0.5.23); its pidfd
        # tells at once.
        for pid in pids:
            if self._process is None:
                return  # one of them was gone already
            how = f"its scheduler (pid {pid}) died"
            died = partial(self.declare_dead, how, pid=pid)
            self._scheduler_watches.append(when_ended(pid, died))

    def declare_dead(self, how: str, own_doing: str | None = None, pid: int | None = None) -> None:
        """Treat a serving worker as dead because of `how`: kill it, fail its requests.

        `own_doing` says what its engine did itself, where that is known; `pid` is that of the
        scheduler that died first.
        """
        if self.state not in ("ready", "suspect") or self._process is None:
            return
        self.last_error = how
        self.become("failed")
        rids = self.rids
        # Whatever fails, all are told. The host reaps its scheduler, and the status, once released.
        status = None if pid is None else death.attempt(self.name, wait_status, pid)
        death.attempt(self.name, self._release)  # reads the last output
        crash = death.attempt(self.name, self._crash) or death.crash_by(status) or own_doing
        self._questions.fail(f"{self.name}: {how}")
        self._fail_requests(WorkerDied.code, how)
        death.attempt(self.name, self._on_death, self, Death(how, rids, crash))

    def _crash(self) -> str | None:
        """Return what the engine wrote of its own crash, None if it wrote nothing."""
        assert self._output is not None
        return death.crash_in(self._output.lines_of_last(death.LAST_WORDS_S))

    def _fail_requests(self, code: str, how: str) -> None:
        for rid, sink in self._requests.close_all().items():
            death.attempt(self.name, sink, Failed(rid, code, f"{self.name}: {how}"))

    # --- requests

    def submit(self, submit: Submit, sink: Callable[[Event], None]) -> None:
        """Send one request; `sink` gets its events, the last of them terminal, unless aborted."""
        rid = submit.request.rid
        if self.state not in ("ready", "suspect") or self._channel is None:
            sink(Failed(rid, WorkerDied.code, f"{self.name} is {self.state}"))
            return
        self._requests.add(rid, sink)
        self._channel.send(submit)

    def abort(self, rid: str) -> None:
        """Abort the request in the engine and deliver nothing more; idempotent, never waits."""
        if self._requests.abort(rid):
            self._send(Abort(rid))

    async def ping(self) -> Load | None:
        """Return the engine's newest load. Raises `WorkerDied` if the worker dies meanwhile."""
        await self._asked().ping()
        return self.load

    async def control(self, name: ControlName, arguments: dict[str, Any]) -> Any:
        """Have the engine do `name`; return what it says. Raises `EngineError` or `WorkerDied`."""
        return await self._asked().control(name, arguments)

    def _asked(self) -> Questions:
        if self._channel is None or self.state not in ("ready", "suspect"):
            raise WorkerDied(f"{self.name} is {self.state}")
        return self._questions

    def ask(self) -> None:
        """Request the newest load without waiting, unless the answer to the last one is due."""
        self._questions.ping_without_waiting()

    def _send(self, message: ToWorker) -> None:
        if self._channel is not None:
            self._channel.send(message)

    def _on_message(self, message: FromWorker) -> None:
        self.heard_at = time.monotonic()
        match message:
            case Delta() | Failed():
                self._deliver(message)
            case Pong(seq, load):
                self.load = load
                self._questions.pong(seq)
            case ControlResult():
                self._questions.answered(message)
            case Ready(info):
                self._resolve_start(info)
            case StartFailure(text):
                self._resolve_start(StartFailed(text))

    def _deliver(self, event: Event) -> None:
        if isinstance(event, Delta):
            self.generated_at = self.heard_at
            self.served += event.finished
            self.proved = self.proved or event.finished
        self._requests.deliver(event)

    def _resolve_start(self, outcome: EngineInfo | PdEagleError) -> None:
        if self._started is None or self._started.done():
            return
        if isinstance(outcome, PdEagleError):
            self._started.set_exception(outcome)
        else:
            self._started.set_result(outcome)

    def _on_eof(self) -> None:
        self._eof = True
        self._resolve_start(StartFailed("its process ended while it was starting"))
        self.declare_dead("its process ended")

    def _on_unsendable(self, message: Any, why: str) -> None:
        if isinstance(message, Submit):  # everything else is ours and small
            failure = f"the request cannot be sent to an engine: {why}"
            self._deliver(Failed(message.request.rid, InvalidRequest.code, failure))
        else:
            logger.error("%s: %s is not sent: %s", self.name, type(message).__name__, why)
