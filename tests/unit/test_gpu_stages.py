"""What the stages for GPUs add up and write, without engines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from safetensors import safe_open

from benchmarks.gpu.host import Host
from benchmarks.gpu.stages import kill, kills, weights

if TYPE_CHECKING:
    from pathlib import Path


def test_tokens_before_a_pause_must_be_the_undisturbed_ones() -> None:
    resumed = kill.Answer(ids=[1, 2, 3, 4], pause_s=7.0, before_pause=2)
    assert kill.equal_until_the_pause(resumed, None)
    assert kill.equal_until_the_pause(resumed, 2)
    assert not kill.equal_until_the_pause(resumed, 1)


def struck(killed: str, pause_s: float, equal: int) -> dict[str, Any]:
    return {
        "killed": killed,
        "complete": 16,
        "equal": equal,
        "equal_until_the_pause": 16,
        "errors": [],
        "spawned_because": None,
        "pause_s": {"max": pause_s},
        "first_token_s": {"max": 0.1},
    }


def test_kills_are_added_up_by_what_was_killed() -> None:
    rows = [struck("decode-0 host", 6.0, 5), struck("prefill-0 host", 0.1, 16)]
    found = kills.summed([*rows, struck("decode-0 host", 8.0, 4)], 16)
    assert (found["kills"], found["answers"], found["complete"], found["equal"]) == (3, 48, 48, 25)
    assert found["spawned_because"] == ["None"]
    assert found["decode-0 host"]["kills"] == 2
    assert found["decode-0 host"]["longest_pause_s"]["p50"] == 7.0
    assert found["decode-0 host"]["longest_pause_s"]["max"] == 8.0


def test_memory_that_grows_from_restart_to_restart_shows() -> None:
    found = kills.memory([10, 10], [[100, 50], [90, 60], [100, 70], [100, 80]])
    assert found["gpu_used_first_half_mb"] == [100, 60]
    assert found["gpu_used_second_half_mb"] == [100, 80]
    assert kills.memory([], [[], []])["gpu_used_second_half_mb"] == []


@pytest.mark.timeout(240)
def test_weights_are_written_in_the_models_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "SHARD_BYTES", 5_000_000)
    host = Host(1, True, tmp_path)
    found = weights.written(host)
    index = json.loads((host.big_model() / "model.safetensors.index.json").read_text())
    assert found["files"] == len(set(index["weight_map"].values())) > 1
    assert weights.written(host) == {k: v for k, v in found.items() if k != "write_s"}
    name = "model.embed_tokens.weight"
    with safe_open(host.big_model() / index["weight_map"][name], "pt") as file:
        tensor = file.get_tensor(name)
    assert tuple(tensor.shape) == (49408, 64)
    assert str(tensor.dtype) == "torch.bfloat16"
    assert 0.01 < float(tensor.float().std()) < 0.03
