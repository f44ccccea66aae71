"""The bottleneck: told when one role waits and the other does not, once, with a setting to try."""

from __future__ import annotations

import pytest

from pd_eagle.plan.config import Settings
from pd_eagle.plan.devices import parse_gpus
from pd_eagle.plan.models import load_shape
from pd_eagle.plan.placement import Plan, plan
from pd_eagle.requests.bottleneck import ENOUGH, SAMPLES, Watch

QWEN = load_shape("Qwen/Qwen2.5-7B-Instruct")


def plan_of(gpus: str, **given: object) -> Plan:
    return plan(Settings.from_kwargs(**given), parse_gpus(gpus), QWEN)


def told(watch: Watch, prefill: list[int], decode: list[int], seconds: int) -> list[str]:
    """What is said in so many seconds of the same queues."""
    return [str(watch.found) for _ in range(seconds) if watch.note(prefill, decode)]


@pytest.mark.parametrize(
    ("gpus", "given", "prefill", "decode", "role", "advice"),
    [
        ("4xH100", {}, [3], [0, 0, 0], "prefill", "PREFILL_REPLICAS=2 DECODE_REPLICAS=2"),
        ("8xH100", {}, [0, 0], [1] * 6, "decode", "PREFILL_REPLICAS=1 DECODE_REPLICAS=7"),
        ("2xH100", {}, [9], [0], "prefill", "PD_MODE=off UNIFIED_REPLICAS=2"),
        ("4xH100", {}, [0], [2, 2, 2], "decode", "PD_MODE=off UNIFIED_REPLICAS=4"),
        (
            "4xH100",
            {"prefill_tp": 2, "decode_tp": 2},
            [5],
            [0],
            "prefill",
            "PD_MODE=off UNIFIED_REPLICAS=2 TP_SIZE=2",
        ),
    ],
)
def test_the_role_that_is_waited_for_and_the_setting_to_try(
    gpus: str, given: dict[str, int], prefill: list[int], decode: list[int], role: str, advice: str
) -> None:
    watch = Watch(plan_of(gpus, **given))
    assert told(watch, prefill, decode, ENOUGH - 1) == []
    said = told(watch, prefill, decode, 2 * SAMPLES)
    assert len(said) == 1  # once, however long it lasts
    assert said[0].startswith(f"{role} is the bottleneck: ")
    assert said[0].endswith(f"; try {advice}")
    assert watch.found is not None
    assert (watch.found.role, watch.found.advice) == (role, advice)


@pytest.mark.parametrize(
    ("prefill", "decode"),
    [([0], [0, 0, 0]), ([1], [1, 1, 1]), ([0], [0, 5, 5]), ([], [1, 1, 1]), ([], [])],
)
def test_no_bottleneck_while_both_or_none_are_short(prefill: list[int], decode: list[int]) -> None:
    watch = Watch(plan_of("4xH100"))
    # decode alone, where no prefill engine has said anything yet
    expected = prefill == [] and decode == [1, 1, 1]
    assert bool(told(watch, prefill, decode, 2 * SAMPLES)) is expected


def test_it_is_over_when_the_queue_is() -> None:
    watch = Watch(plan_of("4xH100"))
    told(watch, [3], [0, 0, 0], SAMPLES)
    assert told(watch, [0], [0, 0, 0], SAMPLES) == ["None"]
    assert watch.found is None


def test_a_moment_is_no_bottleneck() -> None:
    watch = Watch(plan_of("4xH100"))
    for _ in range(20):
        assert told(watch, [3], [0, 0, 0], SAMPLES // 2) == []
        assert told(watch, [0], [0, 0, 0], SAMPLES // 2) == []


def test_a_unified_plan_has_none() -> None:
    watch = Watch(plan_of("2xH100", unified_replicas=2))
    assert told(watch, [3], [0], 2 * SAMPLES) == []
