"""The supervisor's policy and ports; what it does with real workers is in tests/process."""

from __future__ import annotations

import socket
from itertools import islice
from typing import TYPE_CHECKING

import pytest

from pd_eagle.config import DEFAULT_BOOTSTRAP_PORT
from pd_eagle.errors import StartFailed
from pd_eagle.placement import Plan, WorkerPlan
from pd_eagle.supervisor import RestartPolicy, Supervisor, bootstrap_ports, free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = ["prefill-0", "prefill-1"]


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


@pytest.fixture
def used() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_every_prefill_worker_gets_a_port_of_its_own() -> None:
    ports = bootstrap_ports(None, NAMES)
    assert list(ports) == NAMES
    assert DEFAULT_BOOTSTRAP_PORT <= ports["prefill-0"] < ports["prefill-1"]


def test_a_port_that_was_asked_for_must_be_free(used: int) -> None:
    with pytest.raises(StartFailed, match=f"DISAGG_BOOTSTRAP_PORT={used}: wanted a free port"):
        bootstrap_ports(used, NAMES)


def test_a_plan_without_prefill_needs_no_port(used: int) -> None:
    assert bootstrap_ports(used, []) == {}


def test_the_next_ports_may_be_taken(used: int) -> None:
    assert used not in list(islice(free_ports(used - 1), 3))


def test_there_is_an_end_of_ports() -> None:
    with pytest.raises(StartFailed, match="65535"):
        list(free_ports(65530))


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
