"""Summaries of bench_serving and bench_interference: ratios, and whether their targets are met."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import bench_interference, bench_serving
from benchmarks.systems import OURS_PD, ROUTER, options

PARTS = {"p50": 100.0, "p95": 150.0, "p99": 200.0, "max": 210.0}


def load(rate: str, requests_per_s: float, ttft_p50: float) -> dict[str, Any]:
    return {
        "rate": rate,
        "requests": 8,
        "completed": 8,
        "requests_per_s": requests_per_s,
        "tokens_per_s": 50 * requests_per_s,
        "cpu_s_per_1000_tokens": 20.0,
        "ttft_ms": PARTS | {"p50": ttft_p50},
        "prefill_forward_ms": 80.0,
        "itl_ms": PARTS,
        "e2e_ms": PARTS,
    }


def run(system: str, ready_s: float, mib: float, loads: list[dict[str, Any]]) -> dict[str, Any]:
    memory = {"uss": mib, "pss": 2 * mib}
    answered = {"answer": "Paris.", "ready_s": ready_s, "memory_mib": memory}
    return {"system": system, "round": 0, "loads": loads} | answered


def runs() -> list[dict[str, Any]]:
    return [
        run(OURS_PD, 10.0, 2000.0, [load("0.5", 0.5, 90.0), load("inf", 2.0, 500.0)]),
        run(ROUTER, 40.0, 4000.0, [load("0.5", 0.5, 100.0), load("inf", 2.0, 900.0)]),
        run(OURS_PD, 12.0, 2000.0, [load("inf", 4.0, 500.0)]),
    ]


def test_ratios_say_whether_what_is_wanted_is_met() -> None:
    found = {row["figure"]: row for row in bench_serving.summary(runs())["ratios"]}
    assert (found["requests_per_s"]["ratio"], found["requests_per_s"]["met"]) == (1.5, True)
    for rate, ratio, met in (("0.5", 0.9, False), ("inf", 0.556, True)):
        row = found[f"ttft_p50_ms at {rate}"]
        assert (row["ratio"], row["met"]) == (ratio, met)
    assert (found["ready_s"]["ratio"], found["ready_s"]["met"]) == (0.275, True)
    assert (found["private_mib"]["ratio"], found["private_mib"]["met"]) == (0.5, True)


def test_nothing_is_compared_with_what_did_not_start() -> None:
    broken = {"system": ROUTER, "round": 0, "not_started": "no such file"}
    found = bench_serving.summary([runs()[0], broken])
    assert found["ratios"] == []
    assert found["not_started"] == {ROUTER: "no such file"}


def test_other_answers_and_failed_requests_are_wrong() -> None:
    some = runs()
    assert bench_serving.wrong(some) == 0
    some[1]["answer"] = "Rome."
    some[2]["loads"][0]["completed"] = 5
    assert bench_serving.wrong(some) == 4
    assert bench_serving.summary(some)["answers_equal"] is False


@pytest.mark.parametrize(("unified_p99", "met"), [(500.0, True), (400.0, True), (390.0, False)])
def test_the_gaps_of_pd_are_compared_with_each_other_plan(unified_p99: float, met: bool) -> None:
    watched = {"gaps_alone": PARTS, "long_prompts": PARTS}
    found = bench_interference.summary(
        [
            {"plan": bench_interference.PD, "gaps": PARTS} | watched,
            {"plan": "unified", "gaps": PARTS | {"p99": unified_p99}} | watched,
        ]
    )
    (row,) = found["p99_ratio_of_pd"]
    assert (row["to"], row["ratio"], row["met"]) == ("unified", round(200 / unified_p99, 3), met)


def test_engine_arguments_become_options() -> None:
    given = {"tp_size": 1, "sleep_on_idle": True, "enable_x": False, "attention_backend": "ours"}
    assert options(given) == ["--tp-size", "1", "--sleep-on-idle"]
