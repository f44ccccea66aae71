"""What is asked of engines on a CPU, asked of GPUs: by the stages of benchmarks/gpu."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.gpu.host import Host, found_gpus
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.stages import kill, plan, same

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.timeout(900)
Parts = dict[str, dict[str, Any]]


def parts_of(stage: Callable[[Host, Journal], None], folder: Path, gpus: int) -> Parts:
    """Run `stage` as if there were `gpus`; return those of its parts that were run."""
    host = Host(found_gpus(), False, folder)
    journal = Journal(folder / "stage.json", {}, gpus)
    stage(host, journal)
    ran: Parts = {name: part for name, part in journal.parts.items() if "skipped" not in part}
    assert not {name: part["error"] for name, part in ran.items() if "error" in part}
    return ran


def assert_same(parts: Parts) -> None:
    """As served, in bfloat16, rounding turns near ties."""
    exact = {n: part for n, part in parts.items() if n.startswith("exact")}
    assert exact
    for name, part in exact.items():
        for found in [part] if "equal" in part else [part["1 at once"], part["8 at once"]]:
            assert found["equal"] == found["answers"] > 0, (name, found)


def assert_resumed(part: dict[str, Any], *victims: str) -> None:
    for victim in victims:
        found = part[victim]
        assert found["errors"] == []
        assert found["complete"] == found["equal"] == part["streams"]
        assert found["restarts"] >= 1


@pytest.mark.gpu(1)
def test_only_h100_is_split_unasked(tmp_path: Path) -> None:
    parts = parts_of(plan.run, tmp_path, found_gpus())
    assert parts["plan auto"]["right"], parts["plan auto"]
    assert parts["inventory"]["devices"]


@pytest.mark.gpu(2)
def test_pd_on_splits_any_gpus(tmp_path: Path) -> None:
    assert parts_of(plan.run, tmp_path, 2)["plan on"]["mode"] == "pd"


@pytest.mark.gpu(1)
def test_eagle_is_lossless(tmp_path: Path) -> None:
    parts = parts_of(same.run, tmp_path, 1)
    assert_same(parts)
    assert parts["exact unified EAGLE"]["1 at once"]["tokens_per_verification"] > 1.5


@pytest.mark.gpu(2)
def test_pd_equals_unified(tmp_path: Path) -> None:
    parts = parts_of(same.run, tmp_path, 2)
    assert {"exact PD nixl", "exact PD mooncake", "exact PD nixl EAGLE"} <= parts.keys()
    assert_same(parts)


@pytest.mark.gpu(1)
def test_a_killed_engine_resumes(tmp_path: Path) -> None:
    assert_resumed(parts_of(kill.run, tmp_path, 1)["unified-0"], "unified-0")


@pytest.mark.gpu(2)
def test_killed_halves_resume(tmp_path: Path) -> None:
    assert_resumed(parts_of(kill.run, tmp_path, 2)["PD nixl"], "decode-0", "prefill-0")
