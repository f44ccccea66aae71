"""torch.cuda answers from outside until it is told to stop, and is then as it was."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from pd_eagle.plan import cuda_answers
from pd_eagle.plan.devices import Device, parse_gpus

GIB = 2**30
H100 = "NVIDIA H100 80GB HBM3"
TWO = (Device(0, H100, "GPU-a", 80 * GIB, (9, 0)), Device(1, H100, "GPU-b", 80 * GIB, (9, 0)))


def test_the_environment_names_the_architecture_to_whoever_would_ask_the_driver() -> None:
    variables = cuda_answers.environment(TWO, {})
    assert variables.pop("PD_EAGLE_CUDA_ANSWERS") == json.dumps([[H100, 9, 0, 80 * GIB]] * 2)
    assert variables == {
        "FLASHINFER_CUDA_ARCH_LIST": "9.0a",
        "CUTE_DSL_ARCH": "sm_90a",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "SGLANG_NUMA_BIND_V2": "0",
    }


@pytest.mark.parametrize(
    ("capability", "flashinfer", "cute"),
    [((8, 0), "8.0", "sm_80"), ((8, 9), "8.9", "sm_89"), ((10, 3), "10.3a", "sm_103a")],
)
def test_an_architecture_is_written_as_its_compilers_want_it(
    capability: tuple[int, int], flashinfer: str, cute: str
) -> None:
    variables = cuda_answers.environment([Device(0, "a GPU", "GPU-a", GIB, capability)], {})
    assert variables["FLASHINFER_CUDA_ARCH_LIST"] == flashinfer
    assert variables["CUTE_DSL_ARCH"] == cute


def test_architectures_that_the_user_chose_stay() -> None:
    chosen = {"FLASHINFER_CUDA_ARCH_LIST": "9.0a 10.0a", "CUTE_DSL_ARCH": "sm_90"}
    variables = cuda_answers.environment(TWO, chosen)
    assert {name: variables[name] for name in chosen} == chosen


@pytest.mark.parametrize(
    ("devices", "reason"),
    [
        (TWO, None),
        (
            (TWO[0], Device(1, "NVIDIA A100", "GPU-b", 80 * GIB, (8, 0))),
            "the visible GPUs differ",
        ),
        (
            (Device(0, "a GPU", "GPU-a", GIB, (12, 0)),),
            "the GPUs' compute capability is 12.0: wanted 8.x, 9.x, 10.x",
        ),
        (
            parse_gpus("2xH100").devices,
            "the GPUs' compute capability is unknown: wanted 8.x, 9.x, 10.x",
        ),
    ],
)
def test_for_which_gpus_it_can_answer(devices: tuple[Device, ...], reason: str | None) -> None:
    assert cuda_answers.why_not(devices) == reason


def run(code: str, **variables: str) -> Any:
    """Return what `code`, in a process of its own that was given two H100, prints as JSON."""
    given = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path), **variables}
    done = subprocess.run(
        [sys.executable, "-c", code], env=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


ANSWERED = """
import json, torch
from torch.cuda import get_device_capability as by_name_before
before = torch.cuda.is_available(), torch.cuda.device_count()
from pd_eagle.plan import cuda_answers
cuda_answers.install()
cuda_answers.install()
from torch.cuda import current_device as by_name, get_device_name as name_of

def answers():
    return [
        torch.cuda.is_available(), torch.cuda.device_count(), by_name(), name_of(1),
        list(torch.cuda.get_device_capability("cuda:1")),
        torch.cuda.get_device_properties(torch.device("cuda", 1)).total_memory,
    ]

given = answers()
missing = []
for ask in (
    lambda: torch.cuda.get_device_properties().multi_processor_count,
    lambda: torch.cuda.get_device_name(2),
    lambda: torch.cuda._get_nvml_device_index(0),
):
    try:
        ask()
    except Exception as error:
        missing.append(type(error).__name__)
untouched = not torch.cuda.is_initialized()
cuda_answers.dismiss()
after = torch.cuda.is_available(), torch.cuda.device_count()
try:
    by_name()  # kept from before: asks CUDA itself, which is not here
    stale = True
except (RuntimeError, AssertionError):
    stale = False
print(json.dumps([before == after, given, missing, untouched, stale]))
"""


def test_torch_answers_from_outside_until_it_is_dismissed() -> None:
    variables = cuda_answers.environment(TWO, {})
    same, given, missing, untouched, stale = run(ANSWERED, **variables, CUDA_VISIBLE_DEVICES="")
    assert given == [True, 2, 0, H100, [9, 0], 80 * GIB]
    # Nothing is made up: whoever asks for more is told, and workers are spawned.
    assert missing == ["AttributeError", "IndexError", "RuntimeError"]
    assert (same, untouched, stale) == (True, True, False)


def test_torch_is_left_alone_where_no_answers_were_given() -> None:
    code = """
import json, sys
from pd_eagle.plan import cuda_answers
cuda_answers.install()
print(json.dumps("torch" in sys.modules))
"""
    assert run(code) is False
