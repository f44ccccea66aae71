"""The GPU stage of `pd-eagle tune`: its ladder of rates, what a client saw, and its verdict."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.gpu import page, tune_verdict
from benchmarks.gpu.host import Host
from benchmarks.gpu.stage import STAGES, stage_file
from benchmarks.gpu.stages import tune
from benchmarks.gpu.stages.load import Outcome
from pd_eagle.plan.devices import parse_gpus
from pd_eagle.tune import Level, Trial
from pd_eagle.tune_traffic import Asked

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LEVEL = Level(1.0, 0.02, 0.05)
GPUS = parse_gpus("2xH200")


@pytest.mark.parametrize("kept", [[11.3, 7.1, 6.1], [5.0], [80.0, 10.0]])
def test_the_ladder_has_steps_of_a_fifth_around_what_the_winners_keep(kept: list[float]) -> None:
    whole = tune.ladder(kept, 100)
    rates = sorted(whole)
    assert all(after / before <= 1.201 for before, after in itertools.pairwise(rates))
    assert rates[0] < min(kept) / 1.2
    assert rates[-1] > max(kept) * 1.2
    few = tune.ladder(kept, 3)
    assert few == whole[:3]
    assert min(abs(few[0] / one - 1) for one in kept) < 0.1


def test_no_ladder_without_a_plan_that_kept_anything() -> None:
    assert tune.ladder([], 5) == []


def trials(*points: tuple[float, float]) -> list[Trial]:
    return [Trial(rate, 100, (round(share * 100),), rate) for rate, share in points]


def told(best: Sequence[tuple[float, float]], chosen: Sequence[tuple[float, float]]) -> Any:
    measured = {"a": trials(*best), "b": trials(*chosen)}
    return tune_verdict.verdict(measured, 0, LEVEL, "b")


def test_the_choice_is_compared_with_the_best_plan() -> None:
    near = told([(10, 1.0), (12, 0.9)], [(10, 0.99), (12, 0.9)])
    assert near["best_by_keeps"] == "a"
    assert near["within_5_percent"] is True
    assert 0.95 < near["keeps_ratio"] < 1
    far = told([(10, 1.0), (12, 0.98)], [(10, 0.95), (12, 0.5)])
    assert far["within_5_percent"] is False
    assert far["goodput_ratio"] == round(9.5 / 11.76, 4)
    assert far["plans"]["a"] == {
        "keeps_per_s": 12.0,
        "kept_per_s": 12,
        "lost_per_s": None,
        "goodput_per_s": 11.76,
    }


def test_no_choice_is_not_within_anything() -> None:
    said = tune_verdict.verdict({"a": trials((10, 1.0))}, 0, LEVEL, None)
    assert (said["within_5_percent"], said["keeps_ratio"]) == (False, 0.0)
    lost = tune_verdict.verdict({"a": trials((10, 0.0))}, 0, LEVEL, "a")
    assert (lost["within_5_percent"], lost["keeps_ratio"]) == (None, None)


def test_what_was_cut_off_or_failed_was_not_good() -> None:
    load = tune.Load("chat", Asked(10, 5), (LEVEL, Level(1.0, 0.02)))
    good = Outcome(first_s=0.5, gaps_s=[0.01] * 4, took_s=0.6)
    jumpy = Outcome(first_s=0.5, gaps_s=[0.0, 0.0, 0.06, 0.0], took_s=0.6)
    failed = Outcome(error="503: full")
    trial = tune.trial_of([good, jumpy, failed], load, 3.0, 5, 2.0)
    assert (trial.asked, trial.good, trial.answers_per_s) == (5, (1, 2), 1.0)
    assert trial.errors == ("503: full",)
    assert trial.longest_gap_s == {"p50": 0.01, "p95": 0.06}


def test_plans_on_gpus_have_pools_that_let_them_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(tune.EAGLE, "1")
    host = Host(2, False, tmp_path)
    found = {one.name: tune._small(host, one) for one in tune._plans(host, {"levels": []}, GPUS)}
    assert {"PD 1+1", "PD 1+1, EAGLE", "unified × 2, chunk 512", "unified × 1, TP 2"} <= set(found)
    assert json.loads(found["unified × 2"]["ENGINE_ARGS"])["max_total_tokens"] == 150_000
    assert "max_total_tokens" not in json.loads(found["PD 1+1"]["ENGINE_ARGS"])
    assert json.loads(found["PD 1+1"]["DECODE_ENGINE_ARGS"]) == {"max_total_tokens": 250_000}
    assert found["PD 1+1"]["SPECULATIVE_ALGORITHM"] == ""
    assert found["PD 1+1, EAGLE"]["SPECULATIVE_NUM_STEPS"] == "3"


def test_the_ladder_needs_the_search_before_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="wanted part 'chat' tune before"):
        tune._exhaustive(Host(2, True, tmp_path), None, tune.DRY[0], "chat exhaustive")  # type: ignore[arg-type]


def test_the_page_tells_both_parts(tmp_path: Path) -> None:
    said = told([(10, 1.0), (12, 0.9)], [(10, 0.99), (12, 0.9)])
    searched = {
        "levels": [{"level": str(LEVEL), "winner": "b", "plans": {"b": {"keeps_per_s": 10.7}}}],
        "took_s": 260.0,
        "budget_s": 270.0,
    }
    parts = {"chat tune": searched, "chat exhaustive": {"levels": [said]}}
    head = {"finished": True, "dry_run": False, "hardware": {"gpus": ["G"]}, "versions": {}}
    text = json.dumps(head | {"commit": "0", "command": [], "parts": parts})
    assert "tune" in STAGES
    (tmp_path / f"{stage_file('tune')}-chat.json").write_text(text)
    shown = page.section(tmp_path)
    assert f"| chat tune | {LEVEL} | b | 10.7 | – | – | – | 260 of 270 |" in shown
    assert f"| chat exhaustive | {LEVEL} | b | {said['plans']['b']['keeps_per_s']} | a |" in shown
