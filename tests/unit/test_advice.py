"""The advice: which split fits a traffic, held against what was measured, and silence elsewhere."""

from __future__ import annotations

import dataclasses

import pytest

from pd_eagle.plan import measured
from pd_eagle.plan.advice import Advice, Traffic, advise
from pd_eagle.plan.config import Settings
from pd_eagle.plan.devices import parse_gpus
from pd_eagle.plan.models import load_shape
from pd_eagle.plan.placement import plan
from pd_eagle.plan.shapes import Experts, ModelShape

QWEN = load_shape("Qwen/Qwen2.5-7B-Instruct")


def advice(gpus: str, traffic: Traffic, shape: ModelShape = QWEN, **given: object) -> Advice:
    inventory = parse_gpus(gpus)
    found = plan(Settings.from_kwargs(**given), inventory, shape)
    return advise(traffic, found, inventory, shape)


def test_two_gpus_are_as_fast_as_was_measured() -> None:
    found = advice("2xH100", Traffic(6000, 64)).planned
    assert found is not None
    assert found.bottleneck == "prefill"
    assert found.requests_per_s == pytest.approx(6.4)
    assert found.requests_per_s == pytest.approx(measured.PD_ANSWERS_PER_S, rel=0.1)
    # chat: 87.9 requests/s were no limit yet
    chat = advice("2xH100", Traffic(300, 100, 0.0072)).planned
    assert chat is not None
    assert chat.decode == pytest.approx(87.9, rel=0.05)


@pytest.mark.parametrize(
    ("gpus", "traffic", "split", "bottleneck"),
    [
        ("4xH100", Traffic(6000, 64), (3, 1), "prefill"),
        ("8xH100", Traffic(6000, 64), (7, 1), "prefill"),
        ("4xH100", Traffic(300, 2000, 0.01), (1, 3), "decode"),
    ],
)
def test_the_split_follows_the_traffic(
    gpus: str, traffic: Traffic, split: tuple[int, int], bottleneck: str
) -> None:
    found = advice(gpus, traffic)
    assert found.planned is not None
    assert found.best is not None
    assert (found.best.split.prefill_replicas, found.best.split.decode_replicas) == split
    assert found.planned.bottleneck == bottleneck
    assert found.best.requests_per_s >= found.planned.requests_per_s
    assert found.gain == found.best.requests_per_s / found.planned.requests_per_s


def test_the_documented_split_is_named_as_the_bottleneck_and_by_how_much() -> None:
    lines = list(advice("4xH100", Traffic(6000, 64)).lines())
    assert lines[0] == "traffic   6000 prompt and 64 answer tokens, mean gap at most 40 ms"
    assert lines[1].startswith(
        "expected  prefill 1 × TP1, decode 3 × TP1: about 6.4 requests/s, as many as prefill takes"
    )
    assert ", 3 × the plan's: PD_MODE=on PREFILL_REPLICAS=3 DECODE_REPLICAS=1" in lines[2]
    assert measured.SOURCE in lines[3]


def test_a_split_that_fits_is_left_alone() -> None:
    lines = list(advice("2xH100", Traffic(6000, 64)).lines())
    assert lines[2] == "advice    no other split takes noticeably more of this traffic"
    assert "UNIFIED_REPLICAS=2 took 11.3 requests/s where PD took 6.1" in lines[3]


def test_a_unified_plan_is_told_the_best_split_too() -> None:
    found = advice("4xH100", Traffic(3000, 300), unified_replicas=4)
    assert found.planned is None
    assert any(line.startswith("advice    prefill ") for line in found.lines())


def test_a_gap_that_no_step_keeps_is_said_with_what_a_step_takes() -> None:
    found = advice("2xH100", Traffic(3000, 300, 0.002))
    assert found.best is None
    assert "a step alone takes 6.2 ms: wanted a larger --gap-mean" in found.note


def test_a_larger_model_is_slower_by_its_shape() -> None:
    twice = dataclasses.replace(QWEN, name="twice", layers=56)
    small, large = (advice("2xH100", Traffic(3000, 300), shape) for shape in (QWEN, twice))
    assert small.planned is not None
    assert large.planned is not None
    assert large.planned.prefill == pytest.approx(small.planned.prefill / 2)
    assert large.planned.decode < small.planned.decode / 2


@pytest.mark.parametrize(
    ("gpus", "shape", "note"),
    [
        ("2xA100", QWEN, "no rates were measured on 2 × NVIDIA A100"),
        ("cpu", QWEN, "no rates were measured on the CPU"),
        (
            "2xH100",
            dataclasses.replace(QWEN, experts=Experts(8, 1024, 0, 28), name="moe"),
            "moe has experts",
        ),
    ],
)
def test_no_number_is_made_up(gpus: str, shape: ModelShape, note: str) -> None:
    found = advice(gpus, Traffic(3000, 300), shape)
    assert (found.planned, found.best) == (None, None)
    assert found.note.startswith(note)
