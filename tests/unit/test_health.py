"""Health: exactly the names that the documentation promises."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, cast

import pytest

from pd_eagle.messages import EngineInfo, Load
from pd_eagle.plan.placement import Plan, WorkerPlan
from pd_eagle.plan.tuning import Default, Tree
from pd_eagle.requests.health import Health, WorkerHealth
from pd_eagle.workers.worker import Worker

PREFILL = WorkerPlan("prefill-0", "prefill", (0,), 1)
DECODE = WorkerPlan("decode-0", "decode", (1,), 1)
PLAN = Plan(
    "pd",
    "2 × H100",
    "cuda",
    (PREFILL, DECODE),
    ("a note",),
    Tree(3, 1, 4, "measured"),
    (Default("max_running_requests", 9, "9 fit"),),
)


def worker(plan: WorkerPlan) -> Worker:
    return Worker(plan, lambda worker, how: None)


def health(*workers: Worker, plan: Plan = PLAN) -> Health:
    return Health(
        status="ready",
        model="letters",
        model_note=None,
        draft_model=None,
        transfer_backend="nixl",
        transfer_reason="it is there",
        region="seattle",
        version="1",
        plan=plan,
        workers=[WorkerHealth.of(one) for one in workers],
        inflight=2,
        queued=1,
    )


def test_a_worker_says_what_it_is() -> None:
    decode = worker(DECODE)
    decode.state, decode.restarts, decode.served = "ready", 2, 7
    decode.info = EngineInfo(1, [130], 4096, 1024, 256)
    decode.load = Load(1.0, running=1, used_tokens=17, max_running=48, spec_accept_length=1.8)
    decode.last_error = "its process ended"
    assert WorkerHealth.of(decode) == WorkerHealth(
        name="decode-0",
        role="decode",
        state="ready",
        pid=None,
        scheduler_pids=[],  # those of the info are gone with the process
        bootstrap_port=None,
        restarts=2,
        spawned_because=None,
        back_in_s=None,
        inflight=0,
        running=1,
        max_running=48,
        kv_tokens_used=17,
        kv_tokens=4096,
        served=7,
        spec_accept_length=1.8,
        spec_expected_speedup=None,
        last_error="its process ended",
    )


def test_the_names_are_the_documented_ones() -> None:
    prefill = worker(PREFILL)
    prefill.bootstrap_port = 8998
    shown = json.loads(json.dumps(health(prefill, worker(DECODE)).as_json()))
    assert list(shown) == [
        *("status", "pd_mode", "pd_bootstrap_port", "pd_bootstrap_ports", "model", "model_note"),
        *("draft_model", "transfer_backend", "transfer_reason", "tool_call_parser", "region"),
        *("version", "plan", "workers", "inflight", "queued", "bottleneck"),
    ]
    assert (shown["pd_mode"], shown["pd_bootstrap_port"], shown["pd_bootstrap_ports"]) == (
        True,
        8998,
        [8998],
    )
    assert shown["plan"] == {
        "mode": "pd",
        "reason": "2 × H100",
        "notes": ["a note"],
        "tree": {"steps": 3, "topk": 1, "tokens": 4, "reason": "measured"},
        "defaults": [{"name": "max_running_requests", "value": 9, "reason": "9 fit", "role": None}],
        "workers": [
            {"name": "prefill-0", "role": "prefill", "devices": [0], "tp": 1},
            {"name": "decode-0", "role": "decode", "devices": [1], "tp": 1},
        ],
    }
    assert [one["name"] for one in shown["workers"]] == ["prefill-0", "decode-0"]


def test_in_unified_mode_there_is_no_port() -> None:
    unified = WorkerPlan("unified-0", "unified", (), 1)
    plan = Plan("unified", "no GPU", "cpu", (unified,))
    shown = health(worker(unified), plan=plan).as_json()
    assert (shown["pd_mode"], shown["pd_bootstrap_port"], shown["pd_bootstrap_ports"]) == (
        False,
        None,
        [],
    )


@pytest.mark.parametrize(
    ("status", "serving"),
    [
        ("starting", False),
        ("ready", True),
        ("degraded", True),
        ("draining", False),
        ("failed", False),
    ],
)
def test_serving_is_ready_or_nearly_so(status: str, serving: bool) -> None:
    assert replace(health(), status=status).serving is serving  # type: ignore[arg-type]


def test_a_worker_that_restarts_says_when_it_is_back() -> None:
    decode = worker(DECODE)
    assert WorkerHealth.of(decode).back_in_s is None  # nobody knows how long its first start takes
    decode.start_s = 12.34
    assert WorkerHealth.of(decode).back_in_s == 12.3  # not launched yet
    decode._process = cast("Any", object())
    decode._start_began -= 5.0
    assert decode.back_in_s == pytest.approx(7.3, abs=0.2)
    decode._start_began -= 60.0
    assert decode.back_in_s == 0.0
    decode.state = "ready"
    assert decode.back_in_s is None
