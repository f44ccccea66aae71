"""The supervisor's policy; what it does with real workers is in tests/process."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from pd_eagle.plan.placement import Plan, WorkerPlan
from pd_eagle.workers.death import Death
from pd_eagle.workers.restarts import RestartPolicy
from pd_eagle.workers.supervisor import Supervisor

if TYPE_CHECKING:
    from pd_eagle.workers.launch import Launch
    from pd_eagle.workers.worker import Worker


@pytest.mark.parametrize(
    ("recent", "least", "most"),
    [(0, 0.075, 0.125), (1, 0.15, 0.25), (3, 0.6, 1.0), (9, 22.5, 37.5), (1000, 22.5, 37.5)],
)
def test_the_wait_before_a_restart_doubles_up_to_a_limit(
    recent: int, least: float, most: float
) -> None:
    waits = [RestartPolicy().delay_s(recent) for _ in range(200)]
    assert least <= min(waits)
    assert max(waits) <= most
    assert len(set(waits)) > 100  # those that died together do not come back together


def test_nothing_recovers_before_a_start_and_after_a_stop() -> None:
    plan = Plan("unified", "a test", "cpu", (WorkerPlan("unified-0", "unified", (), 1),))
    supervisor = Supervisor(plan, lambda: None)
    (worker,) = supervisor.workers
    worker.state = "ready"
    assert not supervisor.recovering()
    worker.state = "suspect"
    assert supervisor.recovering()
    worker.state = "failed"
    assert not supervisor.recovering()


PLAN = Plan("unified", "a test", "cpu", (WorkerPlan("unified-0", "unified", (), 1),))


async def deaths(supervisor: Supervisor, count: int, apart_s: float) -> Worker:
    """Let the only worker die `count` times, each time `apart_s` after it came back."""
    (worker,) = supervisor.workers
    ready = asyncio.Event()

    async def start(launch: Launch, timeout_s: float | None = None) -> None:
        worker.become("ready")
        ready.set()

    setattr(worker, "start", start)  # noqa: B010 - mypy allows no assignment to a method
    await supervisor.start(lambda *_: cast("Any", None))
    for number in range(count):
        await asyncio.sleep(apart_s)
        ready.clear()
        worker.become("failed")
        supervisor._on_death(worker, Death(f"death {number}", ()))
        if number < count - 1:
            await asyncio.wait_for(ready.wait(), 5)
    for _ in range(100):
        if worker.state in ("ready", "failed"):
            break
        await asyncio.sleep(0.01)
    return worker


@pytest.mark.parametrize(("apart_s", "state"), [(0.0, "failed"), (0.25, "ready")])
async def test_only_restarts_within_the_window_count(apart_s: float, state: str) -> None:
    policy = RestartPolicy(limit=2, window_s=0.2, first_delay_s=0.001, longest_delay_s=0.001)
    supervisor = Supervisor(PLAN, lambda: None, policy)
    try:
        worker = await deaths(supervisor, 5 if state == "ready" else 3, apart_s)
        assert worker.state == state
        assert (worker.last_error or "").startswith("given up") is (state == "failed")
    finally:
        await supervisor.stop()


async def test_nothing_ends_the_watching(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = RestartPolicy(hang_timeout_s=0.01)
    supervisor = Supervisor(PLAN, lambda: None, policy)
    (worker,) = supervisor.workers
    worker.state = "ready"
    looks = 0

    async def look(signs: object) -> float:
        nonlocal looks
        looks += 1
        raise ZeroDivisionError

    monkeypatch.setattr("pd_eagle.workers.supervisor.Heartbeat.silence_s", look)
    watching = asyncio.create_task(supervisor._watch(worker))
    while looks < 3:
        await asyncio.sleep(0.001)
        assert not watching.done()
    watching.cancel()


async def test_whatever_keeps_a_worker_from_starting_it_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = RestartPolicy(first_delay_s=0.001, longest_delay_s=0.001)
    supervisor = Supervisor(PLAN, lambda: None, policy)
    (worker,) = supervisor.workers
    failures = [ZeroDivisionError("a defect"), OSError("no process"), KeyError("x")]
    started = asyncio.Event()

    async def start(worker: Worker) -> None:
        if failures:
            raise failures.pop(0)
        worker.become("ready")
        started.set()

    monkeypatch.setattr(supervisor, "_start", start)
    worker.state = "failed"
    supervisor._on_death(worker, Death("a test says so", ()))
    await asyncio.wait_for(started.wait(), 5)
    assert str(worker.state) == "ready"
    assert worker.last_error == "it could not be launched: KeyError: 'x'"
    await supervisor.stop()
