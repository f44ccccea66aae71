"""A script for `sglang.Engine` runs with `PDEngine` in its place, and sees the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.engine_process import DEFAULTS, EngineHost
from tests.tiny_models import tiny_model

if TYPE_CHECKING:
    from pathlib import Path

Json = dict[str, Any]

#: In `meta_info` of SGLang alone: times of its prefill, which here is another engine's.
OF_PREFILL = {"prefill_finished_time", "storage_prefetch_wait", "storage_staging_wait"}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Json, Json]:
    """What the script saw of SGLang, and of a prefill and a decode engine."""
    folder: Path = tmp_path_factory.mktemp("drop-in")
    # Metrics, which engines count here unless told otherwise, add times to an answer.
    arguments = DEFAULTS | {
        "model_path": str(tiny_model(folder / "model")),
        "enable_metrics": True,
    }
    with EngineHost(folder / "host.log") as host:
        sglang = host.call("tests.engine.drop_in_script:with_sglang", arguments)
        in_pd = arguments | {"pd_mode": "on"}
        return sglang, host.call("tests.engine.drop_in_script:with_pd_eagle", in_pd)


@pytest.mark.parametrize("what", ["texts", "ids", "logprobs", "scores", "errors"])
def test_values_are_the_same(seen: tuple[Json, Json], what: str) -> None:
    sglang, ours = seen
    assert sglang[what]
    assert ours[what] == sglang[what]


def test_answers_are_made_of_the_same(seen: tuple[Json, Json]) -> None:
    sglang, ours = seen
    alone = {name: kind for name, kind in sglang["meta"].items() if name not in OF_PREFILL}
    assert ours["meta"] == alone
    assert ours["kinds"] == sglang["kinds"]
    assert ours["kinds"]["flushed"] is True


def test_the_server_info_has_all_that_sglangs_has(seen: tuple[Json, Json]) -> None:
    sglang, ours = (set(found["info"]) for found in seen)
    assert len(sglang) > 500
    assert (sglang - ours, ours - sglang) == (set(), {"pd_eagle", "pd_eagle_version", "frontend"})
    first, theirs = seen[1]["states"][0], seen[0]["states"][0]
    assert set(first) == {*theirs, "worker", "role"}


def test_log_probabilities_are_tuples(seen: tuple[Json, Json]) -> None:
    for found in seen:
        kind, _ = found["logprobs"]["output_token_logprobs"]
        assert kind[0] == "list"
        assert all("tuple" in member for member in kind[1])
