"""The front's handle to one worker: one engine in one child process.

It starts the process, sends it requests, hands events to whoever waits for them and says at once
when the process or one of its schedulers is gone. It does not decide what happens then.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pd_eagle.errors import InvalidRequest, NotServing, PdEagleError, StartFailed, WorkerDied
from pd_eagle.messages import (
    Abort,
    Delta,
    Event,
    Failed,
    FromWorker,
    Ping,
    Pong,
    Ready,
    StartFailure,
    Stop,
    Submit,
)
from pd_eagle.workers import frames
from pd_eagle.workers.channel import Channel, Traffic
from pd_eagle.workers.last_words import crash_by, crash_in, last_exception, wait_status
from pd_eagle.workers.launch import OutputTail
from pd_eagle.workers.process_exit import when_ended
from pd_eagle.workers.worker_main import WorkerSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pd_eagle.messages import EngineInfo, Load, Role
    from pd_eagle.plan.placement import WorkerPlan
    from pd_eagle.workers.launch import Launcher, WorkerProcess

logger = logging.getLogger(__name__)
engine_output = logging.getLogger("pd_eagle.engine_output")

Result = TypeVar("Result")
State = Literal["starting", "ready", "suspect", "restarting", "stopping", "failed"]

#: From which state a worker may go to which; anything else is a defect and raises.
TRANSITIONS: dict[State, frozenset[State]] = {
    "starting": frozenset({"ready", "failed", "stopping"}),
    "ready": frozenset({"suspect", "restarting", "stopping", "failed"}),
    "suspect": frozenset({"ready", "restarting", "stopping", "failed"}),
    "restarting": frozenset({"ready", "failed", "stopping"}),
    "stopping": frozenset({"failed"}),
    "failed": frozenset({"restarting", "stopping"}),
}

_STOP_TIMEOUT_S = 5.0
_LAST_WORDS_LINES = 15
# From an engine's last words to its death: SGLang may take a while to clean up.
_LAST_WORDS_S = 10.0
# Until an engine has surely dropped what it was told to abort.
_ABORT_TAKES_S = 5.0


@dataclass(frozen=True, slots=True)
class Death:
    """How a serving worker died. `crash` is what the engine said itself; None: it was killed, or
    is treated as dead. `rids` are the requests that were in it, and those that were aborted there
    so short a time ago that they may have been.
    """

    how: str
    rids: tuple[str, ...]
    crash: str | None = None


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start a worker: by whom, with what, for which bootstrap port (prefill only)."""

    launcher: Launcher
    engine_args: dict[str, Any]
    temp_dir: Path
    environment: dict[str, str]
    bootstrap_port: int | None = None
    factory: str = "pd_eagle.workers.engine:start"


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
        self._sinks: dict[str, Callable[[Event], None]] = {}
        self._aborted: dict[str, float] = {}
        self._process: WorkerProcess | None = None
        self._channel: Channel[FromWorker] | None = None
        self._output: OutputTail | None = None
        self._started: asyncio.Future[EngineInfo] | None = None
        self._eof = False
        self._scheduler_watches: list[Callable[[], None]] = []
        self._pongs: dict[int, asyncio.Future[Load | None]] = {}
        self._ping_seq = itertools.count()
        self._asked: int | None = None

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
        """In how many seconds it will serve again if this start takes as long as its last one.

        None while it serves, and where nothing is known.
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
        own = self._process.spawned_because
        return own or (self.info.spawned_because if self.info else None)

    @property
    def inflight(self) -> int:
        return len(self._sinks)

    @property
    def rids(self) -> tuple[str, ...]:
        """The requests in its engine, with those that were aborted there just now."""
        since = time.monotonic() - _ABORT_TAKES_S
        while self._aborted and next(iter(self._aborted.values())) < since:
            del self._aborted[next(iter(self._aborted))]
        return (*self._sinks, *self._aborted)

    def become(self, state: State) -> None:
        if state not in TRANSITIONS[self.state]:
            raise AssertionError(f"{self.name}: no way from {self.state} to {state}")
        logger.info("%s: %s → %s", self.name, self.state, state)
        self.state = state

    # --- life

    async def start(self, launch: Launch, timeout_s: float | None = None) -> None:
        """Start the process and its engine; returns when it is ready to serve.

        Raises `StartFailed` with the engine's last words as soon as the start cannot succeed, or
        when it takes longer than `timeout_s`.
        """
        self._start_began = time.monotonic()
        self.bootstrap_port, self.temp_dir = launch.bootstrap_port, launch.temp_dir
        self.info, self.load, self._eof, self._asked = None, None, False, None
        self.proved = False
        self._aborted.clear()
        launch.temp_dir.mkdir(parents=True, exist_ok=True)
        self._process = process = await launch.launcher.launch()
        self._output = OutputTail(process.output_fd, self._log_line)
        self._started = asyncio.get_running_loop().create_future()
        spec = WorkerSpec(
            name=self.name,
            engine_args=launch.engine_args,
            environment=launch.environment,
            temp_dir=str(launch.temp_dir),
            factory=launch.factory,
        )
        self._channel = Channel(
            FromWorker, self._on_message, self._on_eof, self._on_unsendable, self.traffic
        )
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
            self._died("its process ended")

    async def _start_failure(
        self, process: WorkerProcess, cause: str, *, ends_itself: bool = True
    ) -> StartFailed:
        assert self._output is not None
        if ends_itself:  # how it does so says more than that we killed it
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.exited.wait(), 1.0)
        process.kill_group()
        await self._output.wait_closed(timeout_s=2.0)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.exited.wait(), 1.0)
        said = [line for line in self._output.lines if line.strip()]
        self._release()
        said_why = last_exception(said) if ends_itself else None
        self.last_error = f"{said_why or cause} (its process {process.describe_exit()})"
        self.become("failed")
        tail = "\n".join(f"  {self.name} | {line}" for line in said[-_LAST_WORDS_LINES:])
        return StartFailed(f"{self.name} could not start: {self.last_error}\n{tail}")

    async def stop(self) -> None:
        """End the engine and its process: asked first, killed after a few seconds.

        Requests that are still open fail. A second call, while the first waits, kills at once.
        """
        if self._process is None:
            return
        if self.state in ("starting", "restarting"):
            self.kill()  # its loop does not run yet: it could not hear us
        elif self.state not in ("failed", "stopping"):
            self.become("stopping")
            self._fail_requests(NotServing.code, "it is stopping")
            assert self._channel is not None
            self._channel.send(Stop())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.exited.wait(), _STOP_TIMEOUT_S)
        self._release()

    def declare_dead(self, how: str, own_doing: str | None = None) -> None:
        """Treat a serving worker as dead because of `how`: kill it, fail its requests.

        `own_doing` says what its engine did itself, where that is known.
        """
        self._died(how, own_doing=own_doing)

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
            if self._process is None:  # one of them was gone already
                return
            stop_waiting = when_ended(pid, partial(self._scheduler_died, pid))
            self._scheduler_watches.append(stop_waiting)

    def _scheduler_died(self, pid: int) -> None:
        self._died(f"its scheduler (pid {pid}) died", pid)

    def _died(self, how: str, scheduler: int | None = None, own_doing: str | None = None) -> None:
        if self.state not in ("ready", "suspect") or self._process is None:
            return
        self.last_error = how
        self.become("failed")
        rids = self.rids
        # Whatever fails on the way, requests and whoever restarts this worker are told. The status
        # is there until the host reaps its scheduler, which the release lets happen.
        status = None if scheduler is None else self._surely(wait_status, scheduler)
        self._surely(self._release)  # takes in the last words
        crash = self._surely(self._crash) or crash_by(status) or own_doing
        self._fail_pings(how)
        self._fail_requests(WorkerDied.code, how)
        self._surely(self._on_death, self, Death(how, rids, crash))

    def _surely(self, step: Callable[..., Result], *args: Any) -> Result | None:
        """Return what `step` does; its failure is a defect, and none of the next step's."""
        try:
            return step(*args)
        except Exception:
            logger.exception("%s: a step after its death failed", self.name)
            return None

    def _crash(self) -> str | None:
        """Return what the engine said of its own end, None if it said nothing."""
        assert self._output is not None
        said = [line for line in self._output.lines_of_last(_LAST_WORDS_S) if line.strip()]
        return crash_in(said)

    def _fail_pings(self, how: str) -> None:
        pongs, self._pongs = self._pongs, {}
        for pong in pongs.values():
            if not pong.done():
                pong.set_exception(WorkerDied(f"{self.name}: {how}"))

    def _fail_requests(self, code: str, how: str) -> None:
        sinks, self._sinks = self._sinks, {}
        for rid, sink in sinks.items():
            self._surely(sink, Failed(rid, code, f"{self.name}: {how}"))

    # --- requests

    def submit(self, submit: Submit, sink: Callable[[Event], None]) -> None:
        """Send one request; `sink` gets its events, the last of them terminal, unless aborted."""
        rid = submit.request.rid
        if self.state not in ("ready", "suspect") or self._channel is None:
            sink(Failed(rid, WorkerDied.code, f"{self.name} is {self.state}"))
            return
        self._sinks[rid] = sink
        self._channel.send(submit)

    def abort(self, rid: str) -> None:
        """Forget the request and make the engine do so; idempotent, never waits."""
        if self._sinks.pop(rid, None) is not None and self._channel is not None:
            self._aborted[rid] = time.monotonic()
            self._channel.send(Abort(rid))

    async def ping(self) -> Load | None:
        """Return the engine's newest load. Raises `WorkerDied` if the worker dies meanwhile."""
        if self._channel is None or self.state not in ("ready", "suspect"):
            raise WorkerDied(f"{self.name} is {self.state}")
        seq = next(self._ping_seq)
        pong = self._pongs[seq] = asyncio.get_running_loop().create_future()
        self._channel.send(Ping(seq))
        try:
            await pong
        finally:
            self._pongs.pop(seq, None)
        return self.load

    def ask(self) -> None:
        """Ask for the newest load without waiting, unless an answer to that is still due."""
        if self._asked is None and self._channel is not None:
            self._asked = next(self._ping_seq)
            self._channel.send(Ping(self._asked))

    def _on_message(self, message: FromWorker) -> None:
        self.heard_at = time.monotonic()
        match message:
            case Delta() | Failed():
                self._deliver(message)
            case Pong(seq, load):
                self.load = load
                if seq == self._asked:
                    self._asked = None
                if (pong := self._pongs.get(seq)) and not pong.done():
                    pong.set_result(load)
            case Ready(info):
                self._settle_start(info)
            case StartFailure(text):
                self._settle_start(StartFailed(text))

    def _deliver(self, event: Event) -> None:
        terminal = isinstance(event, Failed) or event.finished
        sink = self._sinks.pop(event.rid, None) if terminal else self._sinks.get(event.rid)
        if isinstance(event, Delta):
            self.generated_at = self.heard_at
            self.served += event.finished
            self.proved = self.proved or event.finished
        if sink is not None:  # else it was aborted and the event crossed the abort
            sink(event)

    def _settle_start(self, outcome: EngineInfo | PdEagleError) -> None:
        if self._started is None or self._started.done():
            return
        if isinstance(outcome, PdEagleError):
            self._started.set_exception(outcome)
        else:
            self._started.set_result(outcome)

    def _on_eof(self) -> None:
        self._eof = True
        self._settle_start(StartFailed("its process ended while it was starting"))
        self._died("its process ended")

    def _on_unsendable(self, message: Any, why: str) -> None:
        if isinstance(message, Submit):  # everything else is ours and small
            failure = f"the request cannot be sent to an engine: {why}"
            self._deliver(Failed(message.request.rid, InvalidRequest.code, failure))
        else:
            logger.error("%s: %s is not sent: %s", self.name, type(message).__name__, why)

    def _log_line(self, line: str) -> None:
        engine_output.info("%s | %s", self.name, line)
