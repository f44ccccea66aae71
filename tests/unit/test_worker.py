"""The worker's states, what is made of an engine's last words, and its output line by line."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any, get_args

import pytest

from pd_eagle.errors import WorkerDied
from pd_eagle.messages import EngineInfo, Failed, Ready, Request, Submit
from pd_eagle.plan.placement import WorkerPlan
from pd_eagle.workers.last_words import crash_by, crash_in, last_exception, wait_status
from pd_eagle.workers.launch import OutputTail, WorkerProcess
from pd_eagle.workers.worker import TRANSITIONS, Death, Launch, State, Worker

if TYPE_CHECKING:
    from pathlib import Path

    from pd_eagle.messages import Event

PLAN = WorkerPlan("decode-0", "decode", (0,), 1)
STATES: tuple[State, ...] = get_args(State)


def worker(state: State = "starting") -> Worker:
    made = Worker(PLAN, lambda worker, how: None)
    made.state = state
    return made


# --- states


def test_the_table_names_every_state() -> None:
    assert set(TRANSITIONS) == set(STATES)
    assert set().union(*TRANSITIONS.values()) <= set(STATES)


@pytest.mark.parametrize("before", STATES)
@pytest.mark.parametrize("after", STATES)
def test_a_worker_goes_only_where_the_table_says(before: State, after: State) -> None:
    one = worker(before)
    if after in TRANSITIONS[before]:
        one.become(after)
        assert one.state == after
    else:
        with pytest.raises(AssertionError, match=f"decode-0: no way from {before} to {after}"):
            one.become(after)


def test_no_state_is_a_dead_end_but_stopping() -> None:
    for state in STATES:
        assert "stopping" in TRANSITIONS[state] or state == "stopping"


def test_a_new_worker_has_nothing() -> None:
    one = worker()
    assert (one.name, one.role, one.state) == ("decode-0", "decode", "starting")
    assert (one.pid, one.info, one.load, one.last_error) == (None, None, None, None)
    assert (one.inflight, one.served, one.restarts) == (0, 0, 0)


@pytest.mark.parametrize("state", ["starting", "restarting", "stopping", "failed"])
def test_one_that_does_not_serve_says_so_at_once(state: State) -> None:
    heard: list[Event] = []
    worker(state).submit(Submit(Request("r", [1], {})), heard.append)
    assert heard == [Failed("r", "worker_died", f"decode-0 is {state}")]


@pytest.mark.parametrize("state", ["starting", "restarting", "stopping", "failed"])
async def test_one_that_does_not_serve_is_not_pinged(state: State) -> None:
    with pytest.raises(WorkerDied, match=f"decode-0 is {state}"):
        await worker(state).ping()


async def test_aborting_and_stopping_one_that_never_started_does_nothing() -> None:
    one = worker()
    one.abort("r")
    one.kill()
    await one.stop()
    assert one.state == "starting"


class OneTurn:
    """A channel on which a worker says that it is ready, and ends, in one turn of the loop."""

    info: EngineInfo

    def __init__(
        self, incoming: object, on_message: Any, on_eof: Any, on_unsendable: object, traffic: object
    ) -> None:
        self._on_message, self._on_eof = on_message, on_eof

    async def attach(self, data: object) -> None:
        self._on_message(Ready(self.info))
        self._on_eof()

    def abort(self) -> None:
        pass


class Started:
    """A launcher of a process that is never spoken to."""

    def __init__(self) -> None:
        self.child = subprocess.Popen(["sleep", "60"], start_new_session=True)

    async def launch(self) -> WorkerProcess:
        output, end = os.pipe()
        os.close(end)
        (data, its_data), (lifeline, its_lifeline) = socket.socketpair(), socket.socketpair()
        self.ends = (its_data, its_lifeline)
        OneTurn.info = EngineInfo(self.child.pid, [], 100, 100, 100, 256)
        return WorkerProcess(self.child.pid, data, lifeline, output)

    def stop_forking(self, failure: str) -> bool:
        return False

    async def close(self) -> None:
        for end in self.ends:
            end.close()
        await asyncio.to_thread(self.child.wait)


async def test_one_that_ends_in_the_turn_in_which_it_was_ready_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pd_eagle.workers.worker.Channel", OneTurn)
    told: list[str] = []
    one, launcher = Worker(PLAN, lambda worker, death: told.append(death.how)), Started()
    await one.start(Launch(launcher, {}, tmp_path / "temp", {}))
    state = one.state
    await one.stop()
    await launcher.close()
    assert (state, told) == ("failed", ["its process ended"])


# --- last words

TAILS = {
    "the last exception": (
        ["Traceback (most recent call last):", "ValueError: first", "  x", "RuntimeError: second"],
        "RuntimeError: second",
    ),
    "of a package": (
        ["torch.cuda.OutOfMemoryError: CUDA out of memory.", "exiting"],
        "torch.cuda.OutOfMemoryError: CUDA out of memory.",
    ),
    "in a line of SGLang's log": (
        ["[2025-01-01 00:00:00 TP0] ValueError: no such file", "[rank0] bye"],
        "[2025-01-01 00:00:00 TP0] ValueError: no such file",
    ),
    "without a message": (["AssertionError"], "AssertionError"),
    "prose that speaks of errors": (["an Error: no", "the ValueError was seen"], None),
    "nothing at all": ([], None),
}


@pytest.mark.parametrize(("lines", "found"), TAILS.values(), ids=TAILS.keys())
def test_the_headline_is_the_last_exception(lines: list[str], found: str | None) -> None:
    assert last_exception(lines) == found


CRASHES = {
    "an exception": (
        ["Scheduler hit an exception: Traceback (most recent call last):", "IndexError: 129"],
        "IndexError: 129",
    ),
    "a fatal signal": (
        ["Fatal Python error: Segmentation fault", "", "Current thread …"],
        "Fatal Python error: Segmentation fault",
    ),
    "as UCX tells of it": (
        ["[host:1:0:1] Caught signal 11 (Segmentation fault: address not mapped)"],
        "[host:1:0:1] Caught signal 11 (Segmentation fault: address not mapped)",
    ),
    "of C++": (
        ["terminate called after throwing an instance of 'c10::Error'"],
        "terminate called after throwing an instance of 'c10::Error'",
    ),
    "told by the watchdog": (
        ["Subprocess scheduler_0 (pid=7) crashed with exit code -6. Triggering SIGQUIT"],
        "Subprocess scheduler_0 (pid=7) crashed with exit code -6. Triggering SIGQUIT",
    ),
    "killed from outside": (
        ["Subprocess scheduler_0 (pid=7) crashed with exit code -9. Triggering SIGQUIT"],
        None,
    ),
    "one request's failure": (["request r failed in the engine", "ValueError: no such"], None),
    "nothing at all": ([], None),
}


@pytest.mark.parametrize(("lines", "found"), CRASHES.values(), ids=CRASHES.keys())
def test_a_crash_is_told_from_a_kill_by_the_last_words(lines: list[str], found: str | None) -> None:
    assert crash_in(lines) == found


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("import os; os.abort()", "killed by SIGABRT"),
        ("import os; os._exit(3)", "exited with code 3"),
        ("import os; os.kill(os.getpid(), 11)", "killed by SIGSEGV"),
        ("import os; os.kill(os.getpid(), 9)", None),
        ("import os; os.kill(os.getpid(), 15)", None),
        ("", None),
    ],
)
def test_a_crash_is_told_from_a_kill_by_the_wait_status(script: str, found: str | None) -> None:
    child = subprocess.Popen([sys.executable, "-S", "-c", script], stderr=subprocess.DEVNULL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie, as its host leaves it
    status = wait_status(child.pid)
    assert status is not None
    assert crash_by(status) == found
    child.wait()
    assert wait_status(child.pid) is None
    assert crash_by(None) is None


# --- how a process ended


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (None, "ended"),
        (0, "exited with code 0"),
        (3 << 8, "exited with code 3"),
        (signal.SIGKILL, "killed by SIGKILL"),
        (signal.SIGSEGV | 0x80, "killed by SIGSEGV"),  # with a core dump
    ],
)
async def test_an_exit_in_words(status: int | None, words: str) -> None:
    with socket.socket() as data, socket.socket() as lifeline:
        process = WorkerProcess(1, data, lifeline, -1)
        process.record_exit(status)
        assert process.describe_exit() == words


# --- output


class Output:
    """A process's output, written by the test."""

    def __init__(self) -> None:
        reading, self.writing = os.pipe()
        self.heard: list[str] = []
        self.tail = OutputTail(reading, self.heard.append)

    def write(self, data: bytes) -> None:
        os.write(self.writing, data)

    async def end(self) -> None:
        os.close(self.writing)
        await self.tail.wait_closed(5)


@pytest.mark.parametrize(
    "pieces",
    [
        [b"one\ntwo\n"],
        [b"o", b"ne\nt", b"wo", b"\n"],
        [b"one\r\ntwo\r\n"],
        [b"one\ntwo"],  # the last words may lack their end
    ],
)
async def test_output_comes_line_by_line(pieces: list[bytes]) -> None:
    output = Output()
    for piece in pieces:
        output.write(piece)
        await asyncio.sleep(0)
    await output.end()
    assert output.heard == ["one", "two"]
    assert list(output.tail.lines) == ["one", "two"]


async def test_output_that_is_not_text_does_no_harm() -> None:
    output = Output()
    output.write(b"\xff\xfe broken \xe2\x82\n")
    await output.end()
    assert output.heard == ["\ufffd\ufffd broken \ufffd"]


async def test_only_the_last_lines_are_kept() -> None:
    output = Output()
    output.write(b"".join(b"%d\n" % n for n in range(1000)))
    await output.end()
    assert len(output.heard) == 1000
    assert list(output.tail.lines) == [str(n) for n in range(800, 1000)]


async def test_output_may_be_closed_before_it_ends() -> None:
    output = Output()
    output.tail.close()
    output.tail.close()
    await output.tail.wait_closed(5)
    os.close(output.writing)


async def test_waiting_for_the_end_of_output_has_a_limit() -> None:
    output = Output()
    await output.tail.wait_closed(0.01)
    await output.end()


# --- a death is told to its end


async def test_nothing_stops_a_death_half_way(monkeypatch: pytest.MonkeyPatch) -> None:
    deaths: list[Death] = []
    one = Worker(PLAN, lambda worker, death: deaths.append(death))
    one.state = "ready"
    data, lifeline = socket.socket(), socket.socket()
    reading, writing = os.pipe()
    one._process = WorkerProcess(2**22 - 1, data, lifeline, reading)  # nobody's pid
    one._output = OutputTail(reading, lambda line: None)
    heard: list[Event] = []

    def broken(event: Event) -> None:
        raise ZeroDivisionError

    def releasing() -> None:
        release()
        raise ZeroDivisionError

    release = one._release
    monkeypatch.setattr(one, "_release", releasing)
    monkeypatch.setattr(one, "_crash", lambda: 1 / 0)
    one._sinks = {"a": broken, "b": heard.append}
    pong = one._pongs[1] = asyncio.get_running_loop().create_future()
    one.declare_dead("a test says so")
    os.close(writing)
    assert heard == [Failed("b", "worker_died", "decode-0: a test says so")]
    assert deaths == [Death("a test says so", ("a", "b"), None)]
    assert isinstance(pong.exception(), WorkerDied)
    assert (one.state, one.inflight) == ("failed", 0)
