"""The benchmark of the front still runs: SGLang's real OpenAI layer, scripted schedulers."""

from __future__ import annotations

import json

import pytest

from benchmarks import bench_front
from benchmarks.provenance import LOGS


@pytest.mark.timeout(120)
def test_a_quick_run_measures_ours_and_sglangs_front() -> None:
    assert bench_front.main(["--quick", "--peers", "sglang"]) == 0
    result = json.loads((LOGS / "front.json").read_text())
    measured = {(row["streams"], row["side"]) for row in result["summary"]["table"]}
    assert measured == {(n, s) for n in bench_front.QUICK_LEVELS for s in ("ours", "sglang")}
    assert all(row["front_us_per_token"] > 0 for row in result["rounds"])
