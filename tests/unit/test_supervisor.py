"""The supervisor's policy; what it does with real workers is in tests/process."""

from __future__ import annotations

import pytest

from pd_eagle.placement import Plan, WorkerPlan
from pd_eagle.supervisor import RestartPolicy, Supervisor


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
