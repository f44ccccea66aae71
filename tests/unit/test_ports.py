"""Bootstrap ports: free, one's own, and another for each start."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pd_eagle.errors import StartFailed
from pd_eagle.plan.engine_settings import DEFAULT_BOOTSTRAP_PORT
from pd_eagle.workers.ports import BootstrapPorts

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = ["prefill-0", "prefill-1"]


@pytest.fixture
def used() -> Iterator[int]:
    with listener() as one:
        yield one.getsockname()[1]


def listener() -> socket.socket:
    """Listen below the ephemeral range, where no client of a busy machine gets the next port."""
    for port in range(20_001, 32_001, 10):
        with contextlib.suppress(OSError):
            return socket.create_server(("127.0.0.1", port))
    raise OSError("no free port below the ephemeral range")


def test_every_prefill_worker_and_every_start_gets_a_port_of_its_own() -> None:
    ports = BootstrapPorts(None, NAMES)
    taken = [ports.take(name) for name in (*NAMES, "prefill-0", "prefill-1", "prefill-0")]
    assert taken == sorted(set(taken))
    assert taken[0] >= DEFAULT_BOOTSTRAP_PORT
    ports.release()


def test_two_services_do_not_choose_the_same_before_either_has_bound_it() -> None:
    one = BootstrapPorts(None, NAMES)
    other = BootstrapPorts(None, NAMES)
    assert not {one.take(name) for name in NAMES} & {other.take(name) for name in NAMES}
    one.release()
    other.release()


def test_a_reservation_is_gone_with_its_process(used: int) -> None:
    take = f"BootstrapPorts({used + 1}, ['a']).take('a')"
    code = f"from pd_eagle.workers.ports import BootstrapPorts; print({take})"
    run = [sys.executable, "-c", code]
    first, second = (subprocess.run(run, capture_output=True, check=True).stdout for _ in range(2))
    assert first == second == f"{used + 1}\n".encode()


def test_a_port_that_was_asked_for_must_be_free(used: int) -> None:
    with pytest.raises(StartFailed, match=f"DISAGG_BOOTSTRAP_PORT={used}: wanted a free port"):
        BootstrapPorts(used, NAMES)
    reserved = BootstrapPorts(used + 1, ["elsewhere"])
    with pytest.raises(StartFailed, match=f"DISAGG_BOOTSTRAP_PORT={used + 1}: wanted a free port"):
        BootstrapPorts(used + 1, NAMES)
    reserved.release()


def test_a_plan_without_prefill_needs_no_port(used: int) -> None:
    BootstrapPorts(used, []).release()


def test_the_next_ports_may_be_taken(used: int) -> None:
    ports = BootstrapPorts(used - 1, ["a", "b"])
    assert used not in (ports.take("a"), ports.take("b"))
    ports.release()


def test_there_is_an_end_of_ports() -> None:
    with pytest.raises(
        StartFailed, match="from DISAGG_BOOTSTRAP_PORT=65534 to 65535 is left for c"
    ):
        BootstrapPorts(65534, ["a", "b", "c"])
    ports = BootstrapPorts(65534, ["a"])
    assert [ports.take("a") for _ in range(4)] == [65534, 65535, 65534, 65535]
    ports.release()
