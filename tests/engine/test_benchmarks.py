"""The comparisons measure: what they do to each system, done to one that runs anyway."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from benchmarks import bench_interference, bench_serving
from benchmarks.systems import FIRST, Running

if TYPE_CHECKING:
    from tests.engine.serving import ServerProcess


def test_a_load_by_sglangs_client_is_measured(server: ServerProcess) -> None:
    system = Running.started("ours", server.url, server.process)
    assert "Paris" in system.ask(FIRST, 16)
    run = bench_serving.measure(system, "inf", 4)
    assert run["completed"] == 4
    assert run["requests_per_s"] > 0
    assert run["cpu_s_per_1000_tokens"] > 0
    raw = run["raw"]
    assert len(raw["ttft_ms"]) == len(raw["e2e_ms"]) == 4
    assert all(e2e > ttft for ttft, e2e in zip(raw["ttft_ms"], raw["e2e_ms"], strict=True))
    memory = system.memory_mib()
    assert 0 < memory["uss"] < memory["pss"]


def test_gaps_beside_a_long_prompt_are_measured(server: ServerProcess) -> None:
    times = bench_interference.Times(alone_s=0.5, disturbed_s=1.0, every_s=1.0)
    found = bench_interference.measure(server.url, times)
    assert found["failures"] == []
    assert len(found["raw"]["long_prompts_ms"]) == 1
    # Four streams, each with an event every few hundredths of a second.
    assert len(found["raw"]["gaps_alone_ms"]) >= 4
    assert len(found["raw"]["gaps_ms"]) > len(found["raw"]["gaps_alone_ms"])


def test_each_scheduler_gets_a_core_of_its_own(server: ServerProcess) -> None:
    workers = server.get("/health")[1]["workers"]
    pids = [pid for worker in workers for pid in worker["scheduler_pids"]]
    before = os.sched_getaffinity(pids[0])
    try:
        given = bench_interference.pin(workers)
        assert [sorted(os.sched_getaffinity(pid)) for pid in pids] == list(given.values())
        assert all(len(cores) == 1 for cores in given.values())
    finally:
        for pid in pids:
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(thread), before)
