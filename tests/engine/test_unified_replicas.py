"""Unified replicas behind one port: one is killed under streams, and nobody notices."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.engine.serving import ServerProcess
from tests.engine.test_resume import ask_all, assert_undisturbed

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTINGS = {
    "UNIFIED_REPLICAS": "2",
    "ENGINE_ARGS": '{"dtype": "float32"}',
    "HANG_TIMEOUT_S": "60",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("unified") / "server.log"
    with ServerProcess(log, **SETTINGS) as running:
        yield running


def test_a_killed_replica_is_replaced_in_mid_answer(server: ServerProcess) -> None:
    undisturbed = asyncio.run(ask_all(server))
    health = server.get("/health")[1]
    assert health["pd_mode"] is False
    assert [worker["role"] for worker in health["workers"]] == ["unified", "unified"]
    assert all(worker["served"] >= 8 for worker in health["workers"])

    killed: list[int] = server.worker("unified-0")["scheduler_pids"]
    answers = asyncio.run(ask_all(server, lambda: os.kill(killed[0], signal.SIGKILL)))
    assert_undisturbed(answers, undisturbed)
    assert server.series("pd_eagle_resumes_total") >= 1
    server.wait_until(
        lambda: server.get("/health")[1]["status"] == "ready" or None, "healed", timeout_s=120
    )
    assert server.worker("unified-0")["restarts"] == 1
