"""`pd-eagle tune` end to end over scripted engines: real plans, real starts, real rates."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pd_eagle import tune_run
from pd_eagle.tune import Level, OutOfTime
from pd_eagle.tune_engine import Prepared, RunningPlan
from pd_eagle.tune_load import Load
from pd_eagle.tune_traffic import Asked, Traffic
from tests.process.pd_scripted import scripted_stack
from tests.process.scripted_server import tiny_model
from tests.scripted import VOCAB_SIZE, Act, Script

if TYPE_CHECKING:
    from collections.abc import Mapping


READY = Script()
LOOSE = Level(first_s=5.0, mean_gap_s=2.0)
#: No engine answers within a microsecond.
NEVER = Level(first_s=1e-6, mean_gap_s=2.0)


def test_tune_judges_every_trial_at_all_levels_and_ends_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_run, "SHORTEST_TRIAL_S", 0.3)
    said: list[str] = []
    environ = {"DEVICE": "cpu", "SERVED_MODEL_NAME": "", "MODEL_PATH": str(tiny_model(tmp_path))}
    budget_s = 14.0
    began = time.monotonic()
    with scripted_stack():
        report = tune_run.run(
            environ, [Asked(8, 4, 0.5)], [LOOSE, NEVER], budget_s, said.append, "unified|PD 1"
        )
    # Reserved for the stop of engines is what the longest stop took: a busy machine may need more.
    assert time.monotonic() - began < budget_s + 5
    winner = report.winner(0)
    assert winner is not None
    assert report.winner(1) is None
    assert {one.candidate.name for one in report.outcomes} | set(report.untried) == {
        "unified × 2",
        "PD 1+1",
    }
    assert all(one.start_s is not None for one in report.outcomes)
    first = winner.trials[0]
    assert first.errors == ()
    assert first.good[0] == first.asked
    assert first.good[1] == 0
    assert first.first_s["p95"] > 0
    assert any("ready after" in line for line in said)
    assert any("kept by some, good: 100%, 0% ✗" in line for line in said)
    told = json.loads(json.dumps(report.as_json()))
    assert told["levels"][1]["winner"] is None
    assert [len(plan["trials"]) for plan in told["plans"]] == [
        len(one.trials) for one in report.outcomes
    ]


def test_a_start_that_never_ends_is_ended_by_the_budget(tmp_path: Path) -> None:
    hangs = json.dumps(Script(start="hang").as_args())
    environ = {"DEVICE": "cpu", "MODEL_PATH": str(tiny_model(tmp_path)), "ENGINE_ARGS": hangs}
    began = time.monotonic()
    with scripted_stack():
        report = tune_run.run(
            environ, [Asked(8, 4)], [LOOSE], 12.0, lambda line: None, "unified × 2$"
        )
    assert time.monotonic() - began < 20
    (only,) = report.outcomes
    assert only.ended[0].startswith("cannot start: ")


def running(folder: Path, script: Script = READY) -> RunningPlan:
    environ = {
        "DEVICE": "cpu",
        "MODEL_PATH": str(tiny_model(folder)),
        "PD_MODE": "on",
        "DECODE_ENGINE_ARGS": json.dumps(script.as_args()),
    }
    return RunningPlan(Prepared.of(environ), 60.0)


def loaded(plan: RunningPlan, level: Level, *, seconds: float = 30.0) -> Load:
    traffic = Traffic([Asked(8, 4)], VOCAB_SIZE)
    return Load(plan, traffic, [level], trial_s=2.0, ends_at=time.monotonic() + seconds)


def test_a_trial_is_cut_short_when_no_level_can_be_kept(tmp_path: Path) -> None:
    slow = Script(acts={chr(letter): Act(pause_s=0.3) for letter in range(VOCAB_SIZE)})
    with scripted_stack(), running(tmp_path, slow) as plan:
        began = time.monotonic()
        trial = loaded(plan, Level(first_s=5.0, mean_gap_s=0.001)).at(20.0)
        assert time.monotonic() - began < 2.0
        assert trial.cut_short
        assert trial.good == (0,)
        assert plan.service.inflight == 0
        whole = loaded(plan, LOOSE).at(20.0)
        assert not whole.cut_short
        assert whole.good == (whole.asked,) == (40,)
        assert 0.25 < whole.mean_gap_s["p50"] < 1.0
        assert whole.longest_gap_s["p50"] >= whole.mean_gap_s["p50"]


def test_where_time_is_short_a_trial_has_fewer_requests(tmp_path: Path) -> None:
    with scripted_stack(), running(tmp_path) as plan:
        assert loaded(plan, LOOSE, seconds=8.0).at(2.0).asked == 8  # of 12, in half of the time
        with pytest.raises(OutOfTime):
            loaded(plan, LOOSE, seconds=1.0).at(2.0)


def test_the_next_plan_imports_while_one_starts_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_run, "_prepares_ahead", lambda inventory: True)
    spawned: list[Prepared] = []
    prepare = Prepared.of

    def spy(environ: Mapping[str, str]) -> Prepared:
        spawned.append(prepare(environ))
        return spawned[-1]

    monkeypatch.setattr(Prepared, "of", spy)
    environ = {"DEVICE": "cpu", "MODEL_PATH": str(tiny_model(tmp_path))}
    begun: list[int] = []  # how many were prepared when a line was said
    with scripted_stack():
        report = tune_run.run(
            environ,
            [Asked(8, 4)],
            [LOOSE],
            11.0,
            lambda line: begun.append(len(spawned)) if "ready after" in line else None,
            "^(unified × 2|PD 1.1)$",
        )
    assert begun[0] == 2
    zygotes = [one.zygote.pid for one in spawned if one.zygote]
    assert len(zygotes) == 2
    assert not [pid for pid in zygotes if Path(f"/proc/{pid}").exists()]
    assert len(report.outcomes) + len(report.untried) == 2
