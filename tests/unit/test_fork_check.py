"""When a process may be forked: its threads by name, and the traces of CUDA."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from pd_eagle.workers.fork_check import why_cuda_is_not_untouched, why_not_fork

if TYPE_CHECKING:
    from pathlib import Path

QUIET = ("python3",)
NVML_ALONE = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/nvidia1", "/dev/null")


@pytest.fixture(autouse=True)
def _no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)


def process(folder: Path, threads: tuple[str, ...], files: tuple[str, ...] = ()) -> Path:
    """Return a folder like /proc/PID, with threads of these names and these files open."""
    for number, name in enumerate(threads, start=99):  # 100 sorts after 99 as a number only
        (folder / "task" / str(number)).mkdir(parents=True)
        (folder / "task" / str(number) / "comm").write_text(f"{name}\n")
    (folder / "fd").mkdir()
    for number, name in enumerate(files):
        (folder / "fd" / str(number)).symlink_to(name)
    return folder


@pytest.mark.parametrize(
    ("threads", "reason"),
    [
        (QUIET, None),
        (("python3", "cuda00001400006"), None),
        (("python3", "jemalloc_bg_thd", "cuda00001400006"), None),
        (("python3", "pyarrow"), "2 threads run in it: its own, pyarrow"),
        (
            ("python3", "python3", "cuda00001400006", "python3", "pool-1"),
            "4 threads run in it: its own, pool-1, 2 × python3",
        ),
        (("cuda00001400006", "python3"), "2 threads run in it: its own, python3"),
        (("python3", "cuda-EvtHandlr"), "2 threads run in it: its own, cuda-EvtHandlr"),
    ],
)
def test_threads_are_known_by_name(
    tmp_path: Path, threads: tuple[str, ...], reason: str | None
) -> None:
    assert why_not_fork(process(tmp_path, threads)) == reason


@pytest.mark.parametrize(
    ("files", "seen"),
    [
        (NVML_ALONE, None),
        ((*NVML_ALONE, "/dev/nvidia-uvm"), "/dev/nvidia-uvm"),
        ((*NVML_ALONE, "/dev/nvidia1"), "/dev/nvidia1"),
        (("/dev/nvidiactl", "/dev/nvidiactl"), None),
        (
            ("/dev/nvidia0", "/dev/nvidia-uvm", "/dev/nvidia0"),
            "/dev/nvidia-uvm, /dev/nvidia0",
        ),
    ],
)
def test_cuda_is_known_by_its_open_files(
    tmp_path: Path, files: tuple[str, ...], seen: str | None
) -> None:
    reason = seen and f"the CUDA driver is initialised in it: it holds {seen}"
    assert why_not_fork(process(tmp_path, QUIET, files)) == reason


def test_cuda_is_known_by_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: True))
    monkeypatch.setitem(sys.modules, "torch", running)
    assert why_cuda_is_not_untouched(process(tmp_path, QUIET)) == "CUDA is initialised in it"


def test_threads_are_no_matter_of_cuda(tmp_path: Path) -> None:
    assert why_cuda_is_not_untouched(process(tmp_path, ("python3", "pool-1"))) is None


def test_this_very_process_can_be_looked_at() -> None:
    assert why_cuda_is_not_untouched() is None
