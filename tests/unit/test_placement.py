"""Placement: which plan comes out of which machine, model and setting, and in which words.

The tables are thought through by hand. In them, `u2` is one unified engine of TP 2, `1x1+3x2` is
one prefill worker of TP 1 with three decode workers of TP 2, `x` is a refusal.
"""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pd_eagle.errors import PlanRefused, SettingsError
from pd_eagle.plan.config import Settings
from pd_eagle.plan.devices import Inventory, parse_gpus
from pd_eagle.plan.models import load_shape
from pd_eagle.plan.placement import Plan, plan
from pd_eagle.plan.shapes import Latent, ModelShape
from pd_eagle.plan.splits import DOCUMENTED

CPU = Inventory("cpu", (), "no driver")

# 28 heads, 4 KV heads, 14.2 GiB: TP 1, 2, 4.
QWEN = load_shape("Qwen/Qwen2.5-7B-Instruct")
# 24 heads, 6 KV heads, 7 GiB: TP 1, 2, 3, 6.
THREE = dataclasses.replace(
    QWEN, name="three", heads=24, kv_heads=6, intermediate_size=9216, hidden_size=3072
)
# 64 heads, 8 KV heads, 131.4 GiB: TP 1, 2, 4, 8. With 4 GiB for KV a GPU needs 135.4, 69.7, 36.9
# or 20.4 GiB, and has 0.85 of its own: H100 67.7, A100 68.0, H200 119.3.
BIG = dataclasses.replace(
    QWEN,
    name="big",
    heads=64,
    kv_heads=8,
    intermediate_size=28672,
    hidden_size=8192,
    layers=80,
    vocab_size=128256,
)
LATENT = dataclasses.replace(
    THREE, name="latent", kv_heads=24, latent=Latent(512, None, 64, 128, 128)
)
MODELS = {"qwen": QWEN, "three": THREE, "big": BIG, "latent": LATENT}

EAGLE = load_shape("leptonai/EAGLE-Qwen2.5-7B-Instruct")
EAGLE3 = load_shape("thoughtworks/Qwen2.5-7B-Instruct-Eagle3")

AUTOMATIC = """
kind   model  TP_SIZE  1   2        3   4        5   6   7   8
H100   qwen   -        u1  1x1+1x1  u1  1x1+3x1  u1  u1  u1  2x1+6x1
H100   three  -        u1  1x1+1x1  u1  1x1+1x3  u1  u1  u1  2x1+6x1
H100   big    -        x   x        x   u4       u4  u4  u4  1x4+1x4
H100   latent -        u1  1x1+1x1  u1  1x1+1x3  u1  u1  u1  1x2+2x3
H200   qwen   -        u1  u1       u1  u1       u1  u1  u1  u1
H200   three  -        u1  u1       u1  u1       u1  u1  u1  u1
H200   big    -        x   u2       u2  u2       u2  u2  u2  u2
A100   qwen   -        u1  u1       u1  u1       u1  u1  u1  u1
A100   three  -        u1  u1       u1  u1       u1  u1  u1  u1
A100   big    -        x   x        x   u4       u4  u4  u4  u4
mixed  qwen   -        .   u1       u1  u1       u1  u1  u1  u1
mixed  three  -        .   u1       u1  u1       u1  u1  u1  u1
mixed  big    -        .   x        x   u4       u4  u4  u4  u4

H100   qwen   1        u1  u1       u1  u1       u1  u1  u1  u1
H100   qwen   2        x   u2       u2  u2       u2  u2  u2  u2
H100   qwen   3        x   x        x   x        x   x   x   x
H100   qwen   4        x   x        x   u4       u4  u4  u4  u4
H100   qwen   8        x   x        x   x        x   x   x   x
H100   three  1        u1  u1       u1  u1       u1  u1  u1  u1
H100   three  2        x   u2       u2  u2       u2  u2  u2  u2
H100   three  3        x   x        u3  u3       u3  u3  u3  u3
H100   three  4        x   x        x   x        x   x   x   x
H100   three  6        x   x        x   x        x   u6  u6  u6
H100   big    1        x   x        x   x        x   x   x   x
H100   big    2        x   x        x   x        x   x   x   x
H100   big    3        x   x        x   x        x   x   x   x
H100   big    4        x   x        x   u4       u4  u4  u4  u4
H100   big    8        x   x        x   x        x   x   x   u8

H200   qwen   1        u1  u1       u1  u1       u1  u1  u1  u1
H200   qwen   2        x   u2       u2  u2       u2  u2  u2  u2
H200   qwen   3        x   x        x   x        x   x   x   x
H200   qwen   4        x   x        x   u4       u4  u4  u4  u4
H200   three  1        u1  u1       u1  u1       u1  u1  u1  u1
H200   three  2        x   u2       u2  u2       u2  u2  u2  u2
H200   three  3        x   x        u3  u3       u3  u3  u3  u3
H200   three  4        x   x        x   x        x   x   x   x
H200   big    1        x   x        x   x        x   x   x   x
H200   big    2        x   u2       u2  u2       u2  u2  u2  u2
H200   big    3        x   x        x   x        x   x   x   x
H200   big    4        x   x        x   u4       u4  u4  u4  u4
H200   big    8        x   x        x   x        x   x   x   u8

A100   qwen   1        u1  u1       u1  u1       u1  u1  u1  u1
A100   qwen   2        x   u2       u2  u2       u2  u2  u2  u2
A100   qwen   3        x   x        x   x        x   x   x   x
A100   qwen   4        x   x        x   u4       u4  u4  u4  u4
A100   three  1        u1  u1       u1  u1       u1  u1  u1  u1
A100   three  2        x   u2       u2  u2       u2  u2  u2  u2
A100   three  3        x   x        u3  u3       u3  u3  u3  u3
A100   three  4        x   x        x   x        x   x   x   x
A100   big    1        x   x        x   x        x   x   x   x
A100   big    2        x   x        x   x        x   x   x   x
A100   big    3        x   x        x   x        x   x   x   x
A100   big    4        x   x        x   u4       u4  u4  u4  u4
A100   big    8        x   x        x   x        x   x   x   u8

mixed  qwen   1        .   u1       u1  u1       u1  u1  u1  u1
mixed  qwen   2        .   u2       u2  u2       u2  u2  u2  u2
mixed  qwen   3        .   x        x   x        x   x   x   x
mixed  qwen   4        .   x        x   u4       u4  u4  u4  u4
mixed  three  1        .   u1       u1  u1       u1  u1  u1  u1
mixed  three  2        .   u2       u2  u2       u2  u2  u2  u2
mixed  three  3        .   x        u3  u3       u3  u3  u3  u3
mixed  three  4        .   x        x   x        x   x   x   x
mixed  big    1        .   x        x   x        x   x   x   x
mixed  big    2        .   x        x   x        x   x   x   x
mixed  big    3        .   x        x   x        x   x   x   x
mixed  big    4        .   x        x   u4       u4  u4  u4  u4
"""

FORCED = """
kind   model  PD_MODE  1   2        3        4        5        6        7        8
H100   qwen   on       x   1x1+1x1  1x1+2x1  1x1+3x1  1x1+4x1  1x1+5x1  1x1+6x1  2x1+6x1
H100   three  on       x   1x1+1x1  1x1+2x1  1x1+1x3  1x1+4x1  1x1+5x1  1x1+6x1  2x1+6x1
H100   big    on       x   x        x        x        x        x        x        1x4+1x4
H200   qwen   on       x   1x1+1x1  1x1+2x1  1x1+3x1  1x1+4x1  1x1+5x1  1x1+6x1  2x1+6x1
H200   three  on       x   1x1+1x1  1x1+2x1  1x1+1x3  1x1+4x1  1x1+5x1  1x1+6x1  2x1+6x1
H200   big    on       x   x        x        1x2+1x2  1x2+1x2  1x2+2x2  1x2+2x2  1x2+3x2
H200   latent on       x   1x1+1x1  1x1+2x1  1x1+1x3  1x1+4x1  1x1+5x1  1x1+6x1  1x2+2x3
A100   qwen   on       x   1x1+1x1  1x1+2x1  1x1+3x1  1x1+4x1  1x1+5x1  1x1+6x1  2x1+6x1
A100   big    on       x   x        x        x        x        x        x        1x4+1x4
mixed  qwen   on       .   1x1+1x1  1x1+2x1  1x1+3x1  1x1+4x1  1x1+5x1  1x1+6x1  2x1+6x1
mixed  big    on       .   x        x        x        x        x        x        1x4+1x4
H100   qwen   off      u1  u1       u1       u1       u1       u1       u1       u1
H200   big    off      x   u2       u2       u2       u2       u2       u2       u2
"""

# GPUs, model, keyword arguments, what comes out.
BY_HAND: list[tuple[str, ModelShape, dict[str, Any], str]] = [
    ("8xH100", QWEN, {"prefill_replicas": 3}, "3x1+5x1"),
    ("8xH100", QWEN, {"decode_replicas": 4}, "2x1+4x1"),
    ("8xH100", QWEN, {"prefill_replicas": 4, "decode_replicas": 4}, "4x1+4x1"),
    ("8xH100", QWEN, {"prefill_replicas": 1, "decode_replicas": 7}, "1x1+7x1"),
    ("8xH100", QWEN, {"decode_replicas": 7}, "1x1+7x1"),
    ("8xH100", QWEN, {"prefill_tp": 2}, "1x2+3x2"),
    ("8xH100", QWEN, {"decode_tp": 4}, "1x4+1x4"),
    ("8xH100", QWEN, {"prefill_tp": 4, "decode_tp": 2}, "1x4+2x2"),
    ("8xH100", QWEN, {"prefill_tp": 1, "decode_tp": 2}, "2x1+3x2"),
    ("8xH100", LATENT, {"prefill_tp": 2, "decode_tp": 3}, "1x2+2x3"),
    ("4xH100", QWEN, {"decode_tp": 2}, "1x2+1x2"),
    ("4xH200", QWEN, {"pd_mode": "on", "prefill_replicas": 2}, "2x1+2x1"),
    ("3xA100", QWEN, {"pd_mode": "on", "prefill_replicas": 2}, "2x1+1x1"),
    ("2xH100", QWEN, {"enable_pd_defaults": False, "pd_mode": "on"}, "1x1+1x1"),
]

NO_ROOM = "73.8 GiB a GPU at TP 2 (weights 69.7, 4 for KV) do not fit into 67.7 GiB, 0.85 of 79.6"

# GPUs, model, keyword arguments, the whole refusal.
REFUSED: list[tuple[str, ModelShape, dict[str, Any], str]] = [
    ("4xH100", QWEN, {"tp_size": 8}, "TP_SIZE=8: wanted at most 4, the visible GPUs"),
    ("4xH100", QWEN, {"tp_size": 3}, "TP_SIZE=3: 28 attention heads do not divide by 3"),
    ("8xH100", THREE, {"tp_size": 4}, "TP_SIZE=4: 6 KV heads and TP 4 do not divide each other"),
    (
        "8xH100",
        BIG,
        {"tp_size": 2},
        "TP_SIZE=2: 69.7 GiB a GPU at TP 2 (weights 65.7, 4 for KV) do not fit into 67.7 GiB,"
        " 0.85 of 79.6",
    ),
    (
        "2xH100",
        QWEN,
        {"mem_fraction_static": 0.1, "pd_mode": "on"},
        f"{QWEN.name} does not fit: 18.2 GiB a GPU at TP 1 (weights 14.2, 4 for KV) do not fit"
        " into 8.0 GiB, 0.1 of 79.6",
    ),
    (
        "1xH100",
        BIG,
        {},
        "big does not fit: 135.4 GiB a GPU at TP 1 (weights 131.4, 4 for KV) do not fit into"
        " 67.7 GiB, 0.85 of 79.6",
    ),
    (
        "3xH100",
        BIG,
        {},
        "big does not fit: 69.7 GiB a GPU at TP 2 (weights 65.7, 4 for KV) do not fit into"
        " 67.7 GiB, 0.85 of 79.6",
    ),
    (
        "1xH100",
        QWEN,
        {"pd_mode": "on"},
        "PD needs two GPUs, one for each role, and 1 is visible: wanted PD_MODE=off, or"
        " PD_DEVICE=cpu to see PD work without",
    ),
    (
        "8xH100",
        QWEN,
        {"prefill_replicas": 5, "decode_replicas": 4},
        "PREFILL_REPLICAS and DECODE_REPLICAS: prefill 5 × TP1, decode 4 × TP1 takes 9 GPUs, and"
        " 8 are visible",
    ),
    (
        "4xH100",
        QWEN,
        {"prefill_replicas": 4},
        "PREFILL_REPLICAS: prefill 4 × TP1, decode 0 × TP1 takes 5 GPUs, and 4 are visible",
    ),
    (
        "8xH100",
        QWEN,
        {"prefill_tp": 2, "decode_tp": 3},
        "PREFILL_TP and DECODE_TP: prefill 1 × TP2, decode 2 × TP3 cannot start: 28 attention"
        " heads do not divide by 3",
    ),
    (
        "8xH100",
        THREE,
        {"prefill_tp": 2, "decode_tp": 3},
        "PREFILL_TP and DECODE_TP: prefill 1 × TP2, decode 2 × TP3 cannot start: KV cannot go from"
        " TP 2 to TP 3: neither is a multiple of the other",
    ),
    (
        "2xH100",
        QWEN,
        {"unified_replicas": 3},
        "UNIFIED_REPLICAS=3: 3 × TP1 takes 3 GPUs, and 2 are visible: wanted at most 2",
    ),
    (
        "4xH100",
        QWEN,
        {"unified_replicas": 3, "tp_size": 2},
        "UNIFIED_REPLICAS=3: 3 × TP2 takes 6 GPUs, and 4 are visible: wanted at most 2",
    ),
    (
        "4xH200",
        QWEN,
        {"prefill_replicas": 1},
        "PREFILL_REPLICAS would have no effect: no PD here, since automatic PD wants 2, 4 or 8"
        " GPUs, all H100; here: 4 × NVIDIA H200; set PD_MODE=on or unset it",
    ),
    (
        "8xH100",
        QWEN,
        {"decode_tp": 1, "enable_pd_defaults": False},
        "DECODE_TP would have no effect: no PD here, since ENABLE_PD_DEFAULTS=false; set"
        " PD_MODE=on or unset it",
    ),
]


def gpus(kind: str, count: int) -> Inventory:
    return parse_gpus(f"{count - 1}xH100,A100" if kind == "mixed" else f"{count}x{kind}")


def short(found: Plan) -> str:
    if found.mode == "unified":
        return f"u{found.workers[0].tp}"
    prefill, decode = found.prefill, found.decode
    assert {w.tp for w in prefill} == {prefill[0].tp}
    assert {w.tp for w in decode} == {decode[0].tp}
    return f"{len(prefill)}x{prefill[0].tp}+{len(decode)}x{decode[0].tp}"


def outcome(inventory: Inventory, shape: ModelShape, **given: Any) -> str:
    try:
        return short(plan(Settings.from_kwargs(**given), inventory, shape))
    except PlanRefused:
        return "x"


def cells(table: str) -> list[Any]:
    _, *rows = (line.split() for line in table.splitlines() if line.strip())
    return [
        pytest.param(kind, count, model, setting, cell, id=f"{count}x{kind}-{model}-{setting}")
        for kind, model, setting, *expected in rows
        for count, cell in enumerate(expected, start=1)
        if cell != "."
    ]


@pytest.mark.parametrize(("kind", "count", "model", "tp_size", "expected"), cells(AUTOMATIC))
def test_the_automatic_plan(kind: str, count: int, model: str, tp_size: str, expected: str) -> None:
    given = {} if tp_size == "-" else {"tp_size": tp_size}
    assert outcome(gpus(kind, count), MODELS[model], **given) == expected


@pytest.mark.parametrize(("kind", "count", "model", "pd_mode", "expected"), cells(FORCED))
def test_the_forced_plan(kind: str, count: int, model: str, pd_mode: str, expected: str) -> None:
    assert outcome(gpus(kind, count), MODELS[model], pd_mode=pd_mode) == expected


@pytest.mark.parametrize(("described", "shape", "given", "expected"), BY_HAND)
def test_a_split_by_hand(
    described: str, shape: ModelShape, given: dict[str, Any], expected: str
) -> None:
    assert outcome(parse_gpus(described), shape, **given) == expected


@pytest.mark.parametrize(("described", "shape", "given", "message"), REFUSED)
def test_a_refusal_says_why_with_the_numbers(
    described: str, shape: ModelShape, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(PlanRefused) as caught:
        plan(Settings.from_kwargs(**given), parse_gpus(described), shape)
    assert caught.value.message == message


def test_pd_defaults_can_be_turned_off() -> None:
    assert outcome(gpus("H100", 8), QWEN, enable_pd_defaults=False) == "u1"


# GPUs, model, keyword arguments, the whole reason.
REASONS: list[tuple[str, ModelShape, dict[str, Any], str]] = [
    (
        "2xH100",
        QWEN,
        {},
        "prefill 1 × TP1, decode 1 × TP1, the documented split: all 2 visible GPUs are H100",
    ),
    (
        "8xH100",
        QWEN,
        {},
        "prefill 2 × TP1, decode 6 × TP1: all 8 visible GPUs are H100; the documented split"
        " (prefill 1 × TP2, decode 2 × TP3) cannot start: 28 attention heads do not divide by 3",
    ),
    (
        "8xH100",
        THREE,
        {},
        "prefill 2 × TP1, decode 6 × TP1: all 8 visible GPUs are H100; the documented split"
        " (prefill 1 × TP2, decode 2 × TP3) cannot start: KV cannot go from TP 2 to TP 3: neither"
        " is a multiple of the other",
    ),
    (
        "4xH100",
        BIG,
        {},
        "one engine: all 4 visible GPUs are H100, but big does not fit: 69.7 GiB a GPU at TP 2"
        " (weights 65.7, 4 for KV) do not fit into 67.7 GiB, 0.85 of 79.6; TP 4 is the smallest"
        " that fits",
    ),
    (
        "3xH100",
        QWEN,
        {"pd_mode": "on", "decode_replicas": 1},
        "prefill 1 × TP1, decode 1 × TP1, by hand (DECODE_REPLICAS): PD_MODE=on; 1 GPU stays"
        " unused",
    ),
    (
        "7xH200",
        BIG,
        {"pd_mode": "on"},
        "prefill 1 × TP2, decode 2 × TP2: PD_MODE=on; 1 GPU stays unused",
    ),
    (
        "4xH200",
        QWEN,
        {},
        "one engine: automatic PD wants 2, 4 or 8 GPUs, all H100; here: 4 × NVIDIA H200; TP 1 is"
        " the smallest that fits; 3 GPUs stay unused (UNIFIED_REPLICAS=4 serves on 4, PD_MODE=on on"
        " 4)",
    ),
    (
        "8xH100",
        QWEN,
        {"tp_size": 4},
        "one engine: TP_SIZE=4 asks for one unified engine; 4 GPUs stay unused (UNIFIED_REPLICAS=2"
        " serves on 8)",
    ),
    (
        "2xH100",
        QWEN,
        {"unified_replicas": 2},
        "2 engines: UNIFIED_REPLICAS=2 asks for unified engines; TP 1 is the smallest that fits",
    ),
    (
        "5xH100",
        QWEN,
        {"unified_replicas": 1, "tp_size": 2},
        "one engine: UNIFIED_REPLICAS=1 asks for unified engines, TP_SIZE=2; 3 GPUs stay unused"
        " (UNIFIED_REPLICAS=2 serves on 4)",
    ),
    (
        "4xH100",
        QWEN,
        {"unified_replicas": 3},
        "3 engines: UNIFIED_REPLICAS=3 asks for unified engines; TP 1 is the smallest that fits;"
        " 1 GPU stays unused (UNIFIED_REPLICAS=4 serves on 4, PD_MODE=on without UNIFIED_REPLICAS"
        " on 4)",
    ),
    (
        "3xA100",
        BIG,
        {"mem_fraction_static": 0.95, "tp_size": 2},
        "one engine: TP_SIZE=2 asks for one unified engine; 1 GPU stays unused",
    ),
    ("1xL40S", QWEN, {"pd_mode": "off"}, "one engine: PD_MODE=off; TP 1 is the smallest that fits"),
]


@pytest.mark.parametrize(("described", "shape", "given", "reason"), REASONS)
def test_a_plan_says_why(
    described: str, shape: ModelShape, given: dict[str, Any], reason: str
) -> None:
    assert plan(Settings.from_kwargs(**given), parse_gpus(described), shape).reason == reason


REPLICAS: list[tuple[str, dict[str, Any], list[tuple[int, ...]]]] = [
    ("2xH100", {"unified_replicas": 2}, [(0,), (1,)]),
    ("8xA100", {"unified_replicas": 3, "tp_size": 2}, [(0, 1), (2, 3), (4, 5)]),
    ("8xH200", {"unified_replicas": 8, "pd_mode": "off"}, [(n,) for n in range(8)]),
    ("cpu", {"unified_replicas": 2}, [(), ()]),
    ("cpu", {"unified_replicas": 2, "model_path": "m", "tp_size": 1}, [(), ()]),
]


@pytest.mark.parametrize(("described", "given", "expected"), REPLICAS)
def test_unified_replicas_have_gpus_of_their_own(
    described: str, given: dict[str, Any], expected: list[tuple[int, ...]]
) -> None:
    found = plan(Settings.from_kwargs(**given), parse_gpus(described), QWEN)
    assert found.mode == "unified"
    assert [worker.devices for worker in found.workers] == expected
    assert [w.name for w in found.workers] == [f"unified-{n}" for n in range(len(expected))]


def test_the_plan_tells_every_default_with_its_reason() -> None:
    found = plan(Settings.from_kwargs(unified_replicas=2), parse_gpus("2xH100"), QWEN)
    assert {default.name: default.value for default in found.defaults} == {
        "chunked_prefill_size": 1024,
        "enable_mixed_chunk": True,
    }
    for default in found.defaults:
        assert f"default: {default.name}={default.value}: {default.reason}" in str(found)


def test_what_the_user_says_of_the_engine_is_no_default() -> None:
    own = {"chunked_prefill_size": 4096}
    kinds: tuple[dict[str, Any], ...] = ({"unified_replicas": 2}, {"pd_mode": "off"})
    for kind in kinds:
        settings = Settings.from_kwargs(engine_args=own, **kind)
        names = [one.name for one in plan(settings, parse_gpus("2xH100"), QWEN).defaults]
        assert names == ["enable_mixed_chunk"]


@pytest.mark.parametrize(
    ("described", "given", "told"),
    [
        ("2xH100", {}, True),
        ("2xH100", {"pd_mode": "on"}, False),  # asked for
        ("4xH100", {}, False),  # not measured
        ("2xH100", {"unified_replicas": 2}, False),
        ("cpu", {}, False),
    ],
)
def test_a_pair_that_nobody_asked_for_says_what_it_gives_up(
    described: str, given: dict[str, Any], told: bool
) -> None:
    found = plan(Settings.from_kwargs(**given), parse_gpus(described), QWEN)
    assert (
        any("UNIFIED_REPLICAS=2 took 11.3 requests/s where PD took 6.1" in n for n in found.notes)
        is told
    )


CPU_PLANS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "1x1+1x1", "prefill 1 × TP1, decode 1 × TP1 on the CPU (no driver): the embedded model"),
    ({"decode_replicas": 2}, "1x1+2x1", "prefill 1 × TP1, decode 2 × TP1 on the CPU"),
    ({"pd_mode": "on", "model_path": "m", "prefill_replicas": 2}, "2x1+1x1", "prefill 2 × TP1"),
    ({"pd_mode": "on", "model_path": "m"}, "1x1+1x1", "prefill 1 × TP1, decode 1 × TP1 on the CPU"),
    ({"model_path": "m"}, "u1", "one engine on the CPU (no driver): automatic PD wants H100 GPUs"),
    ({"pd_mode": "off"}, "u1", "one engine on the CPU (no driver): PD_MODE=off"),
    ({"tp_size": 1}, "u1", "one engine on the CPU (no driver): TP_SIZE=1 asks for one unified"),
    ({"enable_pd_defaults": False}, "u1", "one engine on the CPU (no driver): ENABLE_PD_DEFAULTS"),
]


@pytest.mark.parametrize(("given", "expected", "reason"), CPU_PLANS)
def test_the_plan_on_the_cpu(given: dict[str, Any], expected: str, reason: str) -> None:
    found = plan(Settings.from_kwargs(**given), CPU, QWEN)
    assert short(found) == expected
    assert found.reason.startswith(reason)
    assert all(worker.devices == () for worker in found.workers)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tp_size": 2}, "TP_SIZE=2: engines on the CPU have TP 1"),
        ({"prefill_tp": 2}, "PREFILL_TP=2: engines on the CPU have TP 1"),
        ({"decode_tp": 3}, "DECODE_TP=3: engines on the CPU have TP 1"),
        (
            {"model_path": "m", "decode_replicas": 2},
            "DECODE_REPLICAS would have no effect: no PD here, since automatic PD wants H100 GPUs,"
            " and there is no GPU; set PD_MODE=on or unset it",
        ),
    ],
)
def test_a_refusal_on_the_cpu(given: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanRefused) as caught:
        plan(Settings.from_kwargs(**given), CPU, QWEN)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("described", "target", "draft", "algorithm", "expected"),
    [
        ("4xH100", QWEN, EAGLE, "EAGLE", "1x1+3x1"),
        ("8xH100", QWEN, EAGLE, "EAGLE", "2x1+6x1"),
        # The draft has 7 KV heads, so TP 1 alone: that is enough here …
        ("8xH100", QWEN, EAGLE3, "EAGLE3", "2x1+6x1"),
        # … and not on cards that hold the target only at TP 2.
        ("8xT4", QWEN, EAGLE, "EAGLE", "u2"),
        ("8xT4", QWEN, EAGLE3, "EAGLE3", "x"),
        # The documented splits are unequal; with EAGLE the KV could not be handed over.
        ("4xH100", THREE, None, "EAGLE", "1x1+3x1"),
        ("8xH100", LATENT, None, "EAGLE", "2x1+6x1"),
        ("4xH100", THREE, None, None, "1x1+1x3"),
    ],
)
def test_a_draft_must_split_too_and_wants_equal_tp(
    described: str,
    target: ModelShape,
    draft: ModelShape | None,
    algorithm: str | None,
    expected: str,
) -> None:
    asked = Settings.from_kwargs(speculative_algorithm=algorithm)
    try:
        found = short(plan(asked, parse_gpus(described), target, draft))
    except PlanRefused:
        found = "x"
    assert found == expected


def test_why_eagle_re_plans_the_documented_split() -> None:
    asked = Settings.from_kwargs(speculative_algorithm="EAGLE")
    assert plan(asked, gpus("H100", 4), THREE).reason.endswith(
        "cannot start: with EAGLE, KV cannot go from TP 1 to TP 3"
    )


def test_unequal_tp_by_hand_is_refused_with_eagle() -> None:
    asked = Settings.from_kwargs(speculative_algorithm="EAGLE", prefill_tp=1, decode_tp=2)
    with pytest.raises(PlanRefused, match=r"^PREFILL_TP and DECODE_TP: .* with EAGLE, KV cannot"):
        plan(asked, gpus("H100", 8), QWEN, EAGLE)


def test_why_a_draft_cannot_be_split() -> None:
    asked = Settings.from_kwargs(speculative_algorithm="EAGLE3", tp_size=2)
    with pytest.raises(PlanRefused, match=r"TP_SIZE=2: the draft's 7 KV heads and TP 2 do not"):
        plan(asked, gpus("H100", 2), QWEN, EAGLE3)


def test_the_drafts_weights_count() -> None:
    # 14.2 + 4 GiB fit into 0.232 of 79.6 GiB, with the draft's 2.5 GiB they do not.
    tight = {"mem_fraction_static": 0.232}
    asked = Settings.from_kwargs(speculative_algorithm="EAGLE", **tight)
    one = gpus("H100", 1)
    assert outcome(one, QWEN, **tight) == "u1"
    with pytest.raises(PlanRefused, match=r"20\.7 GiB a GPU at TP 1 \(weights 16\.7, 4 for KV\)"):
        plan(asked, one, QWEN, EAGLE)


def test_a_model_that_drafts_for_itself_counts_one_layer_more() -> None:
    # 36.9 GiB fit into 0.466 of 79.6, with 131.4 / 80 / 4 more they do not.
    tight = {"mem_fraction_static": 0.466, "tp_size": 4}
    assert outcome(gpus("H100", 4), BIG, **tight) == "u4"
    asked = Settings.from_kwargs(speculative_algorithm="EAGLE", **tight)
    with pytest.raises(PlanRefused, match=r"TP_SIZE=4: 37\.3 GiB a GPU"):
        plan(asked, gpus("H100", 4), BIG, BIG)


def test_the_smallest_of_the_visible_gpus_must_hold_its_part() -> None:
    assert outcome(parse_gpus("H100,T4"), QWEN) == "u2"


def test_a_draft_of_another_target_is_refused() -> None:
    asked = Settings.from_kwargs(speculative_algorithm="EAGLE")
    with pytest.raises(SettingsError, match=r"vocabulary has 152064 tokens, the target's 128256"):
        plan(asked, gpus("H100", 8), BIG, EAGLE)


def test_a_draft_without_speculation_is_ignored() -> None:
    assert short(plan(Settings.from_env({}), gpus("H100", 4), BIG, EAGLE)) == "u4"


def test_slicing_kv_heads_is_noted() -> None:
    def notes(shape: ModelShape) -> tuple[str, ...]:
        return plan(Settings.from_env({}), gpus("H100", 4), shape).notes

    assert any("unequal TPs" in note for note in notes(THREE))
    assert notes(LATENT) == notes(QWEN) == ()


def test_the_notes_of_the_devices_are_kept() -> None:
    mixed = gpus("mixed", 4)
    assert plan(Settings.from_env({}), mixed, QWEN).notes == mixed.notes != ()


def test_gpus_are_given_out_in_order() -> None:
    found = plan(Settings.from_env({}), gpus("H100", 8), LATENT)
    assert [(w.name, w.role, w.devices, w.tp) for w in found.workers] == [
        ("prefill-0", "prefill", (0, 1), 2),
        ("decode-0", "decode", (2, 3, 4), 3),
        ("decode-1", "decode", (5, 6, 7), 3),
    ]
    assert found.serving == found.decode


def test_a_plan_reads_as_a_table() -> None:
    assert str(plan(Settings.from_env({}), gpus("H100", 4), LATENT)).splitlines() == [
        "worker      role      TP  devices",
        "prefill-0   prefill    1  GPU 0",
        "decode-0    decode     3  GPU 1, GPU 2, GPU 3",
        "pd: prefill 1 × TP1, decode 1 × TP3, the documented split: all 4 visible GPUs are H100",
    ]
    assert str(plan(Settings.from_env({}), CPU, QWEN)).splitlines()[2].split() == [
        "decode-0",
        "decode",
        "1",
        "CPU",
    ]


def test_the_documented_splits_use_every_gpu() -> None:
    assert {count: split.gpus for count, split in DOCUMENTED.items()} == {2: 2, 4: 4, 8: 8}


optional_count = st.none() | st.integers(1, 6)


@settings(max_examples=300)
@given(
    kind=st.sampled_from(["H100", "H200", "A100", "mixed", "T4"]),
    count=st.integers(2, 10),
    shape=st.sampled_from(list(MODELS.values())),
    algorithm=st.sampled_from([None, "EAGLE"]),
    given=st.fixed_dictionaries(
        {
            "pd_mode": st.sampled_from(["auto", "on", "off"]),
            "tp_size": optional_count,
            "prefill_replicas": optional_count,
            "prefill_tp": optional_count,
            "decode_replicas": optional_count,
            "decode_tp": optional_count,
        }
    ),
)
def test_whatever_is_planned_can_start(
    kind: str, count: int, shape: ModelShape, algorithm: str | None, given: dict[str, Any]
) -> None:
    with suppress(PlanRefused, SettingsError):
        asked = Settings.from_kwargs(speculative_algorithm=algorithm, **given)
        found = plan(asked, gpus(kind, count), shape)
        used = [index for worker in found.workers for index in worker.devices]
        assert used == list(range(len(used)))
        assert len(used) <= count
        assert len({worker.name for worker in found.workers}) == len(found.workers)
        for worker in found.workers:
            assert len(worker.devices) == worker.tp
            assert shape.why_not_tp(worker.tp) is None
        for field in asked.split_by_hand:
            role, what = field.lower().split("_")
            mine = [worker for worker in found.workers if worker.role == role]
            value = getattr(asked, field.lower())
            assert value == (len(mine) if what == "replicas" else mine[0].tp)
