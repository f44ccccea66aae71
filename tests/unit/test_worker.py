"""The worker's states, and that its death is told to its end."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from typing import TYPE_CHECKING, Any, get_args

import pytest

from pd_eagle.errors import WorkerDied
from pd_eagle.messages import EngineInfo, Failed, Ready, Request, Submit
from pd_eagle.plan.placement import WorkerPlan
from pd_eagle.workers.death import Death
from pd_eagle.workers.launch import Launch, WorkerProcess
from pd_eagle.workers.output_tail import OutputTail
from pd_eagle.workers.worker import Worker
from pd_eagle.workers.worker_state import TRANSITIONS, State

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
        OneTurn.info = EngineInfo(self.child.pid, [], 100, 100, 256)
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
    await one.start(Launch(launcher, {}, tmp_path / "temp"))
    state = one.state
    await one.stop()
    await launcher.close()
    assert (state, told) == ("failed", ["its process ended"])


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
    one._requests.add("a", broken)
    one._requests.add("b", heard.append)
    pong = one._questions._awaited[1] = asyncio.get_running_loop().create_future()
    one.declare_dead("a test says so")
    os.close(writing)
    assert heard == [Failed("b", "worker_died", "decode-0: a test says so")]
    assert deaths == [Death("a test says so", ("a", "b"), None)]
    assert isinstance(pong.exception(), WorkerDied)
    assert (one.state, one.inflight) == ("failed", 0)
