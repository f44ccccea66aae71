"""One folder keeps all compiled kernels, wherever the user put it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pd_eagle.plan import deployment, devices, engine_args, kernel_cache
from pd_eagle.plan.config import Settings
from pd_eagle.plan.devices import Device, Inventory

if TYPE_CHECKING:
    import pytest


def test_every_compiler_keeps_its_kernels_in_sglangs_folder(tmp_path: Path) -> None:
    assert kernel_cache.folder({}) == Path.home() / ".cache/sglang"
    environ = {"SGLANG_CACHE_DIR": str(tmp_path), "TVM_FFI_CACHE_DIR": "/mine"}
    assert kernel_cache.environment(environ) == {
        "SGLANG_JIT_CACHE_DIR": str(tmp_path / "jit"),  # SGLang itself would take the home's
        "TVM_FFI_CACHE_DIR": "/mine",
        "TORCH_EXTENSIONS_DIR": str(tmp_path / "torch_extensions"),
    }


def test_the_size_counts_files_in_all_folders(tmp_path: Path) -> None:
    environ = {"SGLANG_CACHE_DIR": str(tmp_path / "cache")}
    assert kernel_cache.size(environ) == (0, 0)
    (tmp_path / "cache/triton").mkdir(parents=True)
    (tmp_path / "cache/triton/a.cubin").write_bytes(b"12345")
    assert kernel_cache.size(environ) == (1, 5)


def test_engines_on_gpus_are_told_the_folder_and_those_on_a_cpu_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus = tuple(Device(i, "NVIDIA H100", f"GPU-{i}", 80 * 2**30, (9, 0)) for i in range(2))
    found = {"cuda": Inventory("cuda", gpus, "two"), "cpu": Inventory("cpu", (), "none")}
    monkeypatch.setattr(engine_args, "installed_transfers", lambda: {"nixl"})
    for kind, inventory in found.items():
        monkeypatch.setattr(devices, "discover", lambda *_, found=inventory: found)
        environ = {"SGLANG_CACHE_DIR": "/kept", "MODEL_PATH": "Qwen/Qwen2.5-7B-Instruct"}
        decided = deployment.decide(Settings.from_env(environ), environ)
        told = decided.environment.get("SGLANG_JIT_CACHE_DIR")
        assert told == {"cuda": "/kept/jit", "cpu": None}[kind]
