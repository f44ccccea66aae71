"""One worker: its start, its requests, its end, each forked and spawned."""

from __future__ import annotations

import os
import signal
from asyncio import create_task, gather
from typing import TYPE_CHECKING

import pytest

from pd_eagle.errors import StartFailed, WorkerDied
from tests.process import processes
from tests.process.stage import Stage, request
from tests.scripted import Act, Script, answer_to

if TYPE_CHECKING:
    from pd_eagle.workers.worker import Worker

HANG = Script(acts={"h": Act("hang", after=3)}, schedulers=1)


async def test_starts_serves_and_stops(stage: Stage) -> None:
    worker = await stage.worker(Script(schedulers=2))
    assert worker.state == "ready"
    assert worker.info is not None
    assert worker.info.pid == worker.pid
    assert len(worker.info.scheduler_pids) == 2
    inbox = stage.submit(worker, request("hello", 5))
    text = ""
    while True:
        delta = await inbox.delta()
        text += delta.text
        if delta.finished:
            break
    assert text == answer_to("hello", 5)
    assert worker.inflight == 0
    pid, schedulers = worker.pid, worker.info.scheduler_pids
    process = worker._process
    assert process is not None
    await worker.stop()
    assert worker.pid is None
    assert process.describe_exit() == "exited with code 0"
    assert await stage.journal.line("unified-0 .* shut down")
    assert not processes.still_alive([pid or 0], timeout_s=0)
    assert not processes.still_alive(schedulers, timeout_s=0)


async def test_requests_do_not_wait_for_each_other(forked: Stage) -> None:
    worker = await forked.worker(HANG)
    hanging = forked.submit(worker, request("h"))
    for _ in range(3):
        await hanging.delta()
    others = [forked.submit(worker, request(f"{n}")) for n in range(8)]
    for n, other in enumerate(others):
        text = "".join([(await other.delta()).text for _ in range(16)])
        assert text == answer_to(f"{n}")
    assert worker.inflight == 1


async def test_an_abort_ends_the_request_in_the_engine(stage: Stage) -> None:
    worker = await stage.worker(HANG)
    wanted = request("h")
    inbox = stage.submit(worker, wanted)
    await inbox.delta()
    worker.abort(wanted.rid)
    worker.abort(wanted.rid)
    assert worker.inflight == 0
    await stage.journal.line(f"aborted {wanted.rid}")
    load = await worker.ping()
    assert load is not None
    assert load.running == 0


async def test_an_abort_in_the_turn_of_the_submit_arrives(forked: Stage) -> None:
    worker = await forked.worker(HANG)
    wanted = request("h")
    forked.submit(worker, wanted)
    worker.abort(wanted.rid)
    await worker.ping()
    load = await worker.ping()
    assert load is not None
    assert load.running == 0
    assert not any(wanted.rid in line for line in forked.journal.lines)


async def test_what_comes_after_an_abort_is_dropped(forked: Stage) -> None:
    worker = await forked.worker(Script(acts={"s": Act(after=0, pause_s=0.001)}))
    wanted = request("s", 200)
    inbox = forked.submit(worker, wanted)
    await inbox.delta()
    worker.abort(wanted.rid)
    heard = inbox.events.qsize()
    await forked.journal.line(f"aborted {wanted.rid}")
    await worker.ping()
    assert inbox.events.qsize() == heard


async def test_a_failure_is_the_requests_own(forked: Stage) -> None:
    acts = {"f": Act("fail", after=2, code="transfer_failed"), "r": Act("raise", after=1)}
    worker = await forked.worker(Script(acts=acts))
    failure = await forked.submit(worker, request("f")).failure()
    assert (failure.code, failure.message) == ("transfer_failed", "the script says so")
    failure = await forked.submit(worker, request("r")).failure()
    assert (failure.code, failure.message) == (
        "engine_error",
        "ZeroDivisionError: the script says so",
    )
    assert (await forked.submit(worker, request("x", 1)).delta()).text == answer_to("x", 1)
    assert worker.state == "ready"
    assert worker.inflight == 0


@pytest.mark.parametrize("then", ["die", "exit"])
async def test_a_death_ends_every_request_at_once(stage: Stage, then: str) -> None:
    script = Script(acts={"h": Act("hang", after=1), "d": Act(then, after=2)}, schedulers=1)  # type: ignore[arg-type]
    worker = await stage.worker(script)
    assert worker.info is not None
    scheduler = worker.info.scheduler_pids[0]
    hanging, dying = (stage.submit(worker, request(prompt)) for prompt in "hd")
    assert [(await dying.delta()).text for _ in range(2)] == list(answer_to("d", 2))
    for inbox in (hanging, dying):
        failure = await inbox.failure()
        assert failure.code == "worker_died"
        assert failure.message == "unified-0: its process ended"
    assert await stage.deaths.get() == ("unified-0", "its process ended")
    # what it said at the very end was heard before that
    assert any(line.startswith(f"unified-0 | {then} ") for line in stage.journal.lines)
    assert worker.state == "failed"
    assert worker.pid is None
    # the scheduler outlived its host: it held no socket open, and the front has killed it
    assert not processes.still_alive([scheduler], timeout_s=2)
    with pytest.raises(WorkerDied, match="unified-0 is failed"):
        await worker.ping()
    late = await stage.submit(worker, request("x")).failure()
    assert (late.code, late.message) == ("worker_died", "unified-0 is failed")


async def test_a_schedulers_death_is_seen_at_once(stage: Stage) -> None:
    worker = await stage.worker(Script(acts={"h": Act("hang", after=1)}, schedulers=2))
    assert worker.info is not None
    pid, (_, second) = worker.pid, worker.info.scheduler_pids
    inbox = stage.submit(worker, request("h"))
    await inbox.delta()
    os.kill(second, signal.SIGKILL)
    failure = await inbox.failure()
    assert failure.code == "worker_died"
    assert failure.message == f"unified-0: its scheduler (pid {second}) died"
    assert await stage.deaths.get() == ("unified-0", f"its scheduler (pid {second}) died")
    assert not processes.still_alive([pid or 0], timeout_s=2)


async def test_a_ping_that_waits_fails_with_the_worker(forked: Stage) -> None:
    worker = await forked.worker(Script())
    os.kill(worker.pid or 0, signal.SIGSTOP)
    asked = forked.submit(worker, request("x"))
    os.kill(worker.pid or 0, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="its process ended"):
        await worker.ping()
    await asked.failure()


START_FAILURES = [
    (
        Script(start="raise", last_words=["loading", "no memory left"]),
        "RuntimeError: the script says that the engine cannot start",
        "exited with code 3",
    ),
    (
        Script(start="fail", last_words=["Traceback …", "ValueError: the weights are torn"]),
        "ValueError: the weights are torn",
        "exited with code 3",
    ),
    (
        Script(start="exit", last_words=["something", "out of memory"]),
        "its process ended while it was starting",
        "exited with code 7",
    ),
    (
        Script(start="die", last_words=["about to die"]),
        "its process ended while it was starting",
        "killed by SIGKILL",
    ),
]


@pytest.mark.parametrize(("script", "why", "how"), START_FAILURES, ids=lambda v: str(v)[:24])
async def test_a_failed_start_carries_the_last_words(
    stage: Stage, script: Script, why: str, how: str
) -> None:
    worker = stage.new_worker()
    with pytest.raises(StartFailed) as caught:
        await stage.start(worker, script)
    headline, *tail = str(caught.value).splitlines()
    assert headline == f"unified-0 could not start: {why} (its process {how})"
    assert [f"  unified-0 | {line}" for line in script.last_words] == tail[: len(script.last_words)]
    assert worker.state == "failed"
    assert worker.last_error == f"{why} (its process {how})"
    assert worker.pid is None


async def test_a_start_can_be_cut_off(stage: Stage) -> None:
    worker = stage.new_worker()
    starting = create_task(stage.start(worker, Script(start="hang")))
    await stage.journal.line("starting for ever")
    pid = worker.pid
    await worker.stop()
    with pytest.raises(StartFailed):
        await starting
    assert not processes.still_alive([pid or 0], timeout_s=2)


@pytest.mark.parametrize("script", [Script(shutdown="hang"), Script(acts={"d": Act("deaf")})])
async def test_a_worker_that_does_not_stop_is_killed(
    stage: Stage, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pd_eagle.workers.worker._STOP_TIMEOUT_S", 0.3)
    worker = await stage.worker(script)
    pid = worker.pid
    wanted = request("d")
    stage.submit(worker, wanted)
    await stage.journal.line(f"got {wanted.rid}")
    await worker.stop()
    assert not processes.still_alive([pid or 0], timeout_s=2)


async def test_every_request_ends_when_its_worker_is_stopped(forked: Stage) -> None:
    worker = await forked.worker(HANG)
    inbox = forked.submit(worker, request("h"))
    await inbox.delta()
    await worker.stop()
    failure = await inbox.failure()
    assert (failure.code, failure.message) == ("not_serving", "unified-0: it is stopping")
    assert worker.inflight == 0


async def test_stopping_twice_at_the_same_time_is_stopping_once(
    forked: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pd_eagle.workers.worker._STOP_TIMEOUT_S", 0.3)
    worker: Worker = await forked.worker(Script(shutdown="hang"))
    await gather(worker.stop(), worker.stop())
    assert worker.pid is None
