"""The CPU platform is inert unless activated, and activation imports neither SGLang nor torch."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from pd_eagle import cpu

if TYPE_CHECKING:
    import pytest


def test_activates_only_when_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SGLANG_PLATFORM", raising=False)
    assert cpu.activate() is None
    monkeypatch.setenv("SGLANG_PLATFORM", "somebody_else")
    assert cpu.activate() is None
    monkeypatch.setenv("SGLANG_PLATFORM", cpu.PLATFORM)
    assert cpu.activate() == "pd_eagle.cpu.platform.CpuPlatform"


def test_the_environment_asks_for_the_platform_and_hides_gpus() -> None:
    variables = cpu.environment()
    assert variables["SGLANG_PLATFORM"] == cpu.PLATFORM
    assert variables["CUDA_VISIBLE_DEVICES"] == ""
    assert "HF_HUB_OFFLINE" not in variables
    assert cpu.environment(offline=True)["HF_HUB_OFFLINE"] == "1"
    assert variables["OMP_NUM_THREADS"] == "1"


def test_an_engine_has_the_threads_that_its_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in cpu.environment(threads=2).items():
        monkeypatch.setenv(name, value)
    assert cpu.threads() == 2
    # Libraries start threads of this one while they are imported; then nothing may be forked.
    assert cpu.environment(threads=2)["OMP_NUM_THREADS"] == "1"
    monkeypatch.delenv("PD_EAGLE_CPU_ENGINE_THREADS")
    assert cpu.threads() == 1


def test_the_entry_point_is_declared() -> None:
    (found,) = entry_points(group="sglang.srt.platforms", name=cpu.PLATFORM)
    assert found.load() is cpu.activate


def test_its_package_imports_neither_sglang_nor_torch() -> None:
    code = "import sys, pd_eagle.cpu as c; c.environment(); c.activate(); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=10
    ).stdout.split()
    assert not {"sglang", "torch", "transformers"} & set(loaded)
