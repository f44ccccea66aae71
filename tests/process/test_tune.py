"""`pd-eagle tune` end to end over scripted engines: real plans, real starts, real rates."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pd_eagle import tune_run
from pd_eagle.tune import Level
from tests.process.pd_scripted import scripted_stack
from tests.process.scripted_server import tiny_model

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_tune_tries_plans_and_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_run, "TRIAL_S", 0.3)
    said: list[str] = []
    environ = {"DEVICE": "cpu", "SERVED_MODEL_NAME": "", "MODEL_PATH": str(tiny_model(tmp_path))}
    began = time.monotonic()
    with scripted_stack():
        report = tune_run.run(
            environ,
            [tune_run.Asked(8, 4)],
            Level(first_s=5.0, mean_gap_s=2.0),
            20.0,
            said.append,
            "unified|PD 1",
        )
    assert time.monotonic() - began < 60  # the last engines' end counts too
    assert report.winner is not None
    assert {one.candidate.name for one in report.outcomes} | set(report.untried) == {
        "unified × 2",
        "PD 1+1",
    }
    assert all(one.start_s is not None for one in report.outcomes)
    # Scripted engines keep any rate: the budget is what ends them, the second maybe in its first.
    assert all(one.trials or one.ended == "out of time" for one in report.outcomes)
    assert report.winner.trials[0].errors == ()
    assert report.winner.kept_per_s > 0
    assert any("ready after" in line for line in said)
    assert any("kept" in line for line in said)
