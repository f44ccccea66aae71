"""Which deployments fork their engines, what their zygote is told, and what is said otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pd_eagle import serve
from pd_eagle.errors import StartFailed
from pd_eagle.plan import deployment as deployments
from pd_eagle.plan import devices
from pd_eagle.plan.config import Settings
from pd_eagle.plan.devices import Device, Inventory
from pd_eagle.workers import zygote
from pd_eagle.workers.zygote import ForkRefused

if TYPE_CHECKING:
    from pd_eagle.plan.deployment import Deployment

GIB = 2**30
H100 = "NVIDIA H100 80GB HBM3"


def found(monkeypatch: pytest.MonkeyPatch, *gpus: tuple[str, tuple[int, int]]) -> None:
    """Let these GPUs, name and compute capability, be what this machine has."""
    given = tuple(Device(i, name, f"GPU-{i}", 80 * GIB, cc) for i, (name, cc) in enumerate(gpus))
    inventory = Inventory("cuda" if given else "cpu", given, "a test")
    monkeypatch.setattr(devices, "discover", lambda *_: inventory)
    monkeypatch.setattr(
        "pd_eagle.plan.engine_args.installed_transfers", lambda: frozenset({"nixl"})
    )


def decide(tmp_path: Path, **settings: Any) -> Deployment:
    config = Path(__file__).parents[2] / "pd_eagle/demo/draft/config.json"
    assert config.exists()
    environ = {"OMP_NUM_THREADS": "8"}
    return deployments.decide(Settings.from_kwargs(**settings), environ)


def test_engines_are_forked_on_gpus_that_are_alike(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found(monkeypatch, (H100, (9, 0)), (H100, (9, 0)))
    deployment = decide(tmp_path)
    assert deployment.fork_refusal is None
    assert deployment.zygote_variables["CUTE_DSL_ARCH"] == "sm_90a"
    # Those that are spawned all the same have what the user gave.
    assert deployment.environment["OMP_NUM_THREADS"] == "8"
    assert "PD_EAGLE_CUDA_ANSWERS" not in deployment.environment


def test_engines_are_spawned_on_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found(monkeypatch, ("NVIDIA GeForce RTX 5090", (12, 0)))
    deployment = decide(tmp_path, mem_fraction_static=0.9)
    assert deployment.fork_refusal == "the GPUs' compute capability is 12.0: wanted 8.x, 9.x, 10.x"
    assert deployment.zygote_variables == {}
    assert serve._fork_zygote(deployment) == deployment.fork_refusal


def test_nothing_is_forked_where_the_user_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for gpus in [(), ((H100, (9, 0)),)]:
        found(monkeypatch, *gpus)
        assert decide(tmp_path, fork_workers=False).fork_refusal == "FORK_WORKERS=false"


def fork_from_here(error: Exception) -> Any:
    def fail(*_: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("gpus", "error", "said"),
    [
        ([(H100, (9, 0))], ForkRefused("2 threads run"), "2 threads run"),
        ([], ForkRefused("2 threads run"), "2 threads run"),
        (
            [(H100, (9, 0))],
            AttributeError("no attribute 'multi_processor_count'"),
            "what every engine loads could not be loaded: AttributeError: no attribute"
            " 'multi_processor_count'",
        ),
        ([], AttributeError("no attribute"), None),  # spawned workers would fail, too
    ],
)
def test_the_server_spawns_where_it_cannot_fork_and_knows_why(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    gpus: list[tuple[str, tuple[int, int]]],
    error: Exception,
    said: str | None,
) -> None:
    found(monkeypatch, *gpus)
    monkeypatch.setattr(zygote, "fork_from_here", fork_from_here(error))
    monkeypatch.setattr("os.environ", {})
    deployment = decide(tmp_path)
    if said is None:
        with pytest.raises(StartFailed, match="no attribute"):
            serve._fork_zygote(deployment)
    else:
        assert serve._fork_zygote(deployment) == said
