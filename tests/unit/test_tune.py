"""The search for the best plan: over plans whose capacity the test knows."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pd_eagle import cli, tune_run
from pd_eagle.errors import PlanRefused, SettingsError, StartFailed
from pd_eagle.plan.devices import parse_gpus
from pd_eagle.tune import Candidate, Level, Outcome, OutOfTime, Report, Trial, bracket, search

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LEVEL = Level(first_s=1.0, mean_gap_s=0.02)
PLAN = Candidate("PD 1+1", {"PD_MODE": "on"})


def of_capacity(capacity: float, limit: int = 1000) -> Callable[[float], Trial]:
    """Play a plan that keeps every rate up to `capacity`, and has time for `limit` trials."""
    left = limit

    def measure(rate: float) -> Trial:
        nonlocal left
        if not left:
            raise OutOfTime
        left -= 1
        good = 100 if rate <= capacity else 50
        return Trial(rate, 100, good, min(rate, capacity), 0.1, 0.01)

    return measure


@settings(max_examples=200)
@given(st.floats(0.05, 500), st.floats(0.5, 5))
def test_the_bracket_holds_the_capacity_and_is_narrow(capacity: float, first: float) -> None:
    found = bracket(PLAN, of_capacity(capacity), LEVEL, first_per_s=first)
    assert len(found.trials) <= 20
    if capacity >= first / 16:
        assert found.kept_per_s <= capacity < found.lost_per_s
        assert found.lost_per_s <= 1.15 * found.kept_per_s
    else:
        assert found.kept_per_s <= capacity


def test_a_plan_that_cannot_win_is_given_up_after_one_trial() -> None:
    found = bracket(PLAN, of_capacity(5), LEVEL, first_per_s=1, to_beat_per_s=8)
    assert (len(found.trials), found.kept_per_s) == (1, 0.0)
    assert found.ended == "does not keep 8.4/s, and another does"
    assert bracket(PLAN, of_capacity(20), LEVEL, first_per_s=1, to_beat_per_s=8).kept_per_s > 17


def test_what_was_found_counts_when_time_is_up() -> None:
    found = bracket(PLAN, of_capacity(30, limit=2), LEVEL, first_per_s=2)
    assert (found.kept_per_s, found.lost_per_s, found.ended) == (4, math.inf, "out of time")
    assert found.answers_per_s == 4


@pytest.mark.parametrize(
    ("first_s", "gaps", "good"),
    [
        (0.9, [0.01, 0.03], True),
        (1.1, [0.01], False),
        (0.5, [0.03, 0.03], False),
        (0.5, [0.01] * 20 + [0.06], False),  # the longest
        (0.5, [], True),
    ],
)
def test_a_good_answer(first_s: float, gaps: list[float], good: bool) -> None:
    assert Level(1.0, 0.02, 0.05).keeps(first_s, gaps) is good


shares: list[float] = []  # seconds that each was given


def outcomes(
    capacities: dict[str, float], *, start_s: float, ends_at: float
) -> tuple[list[Outcome], list[str], list[str]]:
    """Search plans of these capacities, each of which takes `start_s` and a second a trial."""
    now, tried = 0.0, []
    shares.clear()

    def try_out(candidate: Candidate, to_beat: float, ends: float) -> Outcome:
        nonlocal now
        tried.append(candidate.name)
        shares.append(ends - now)
        now += start_s
        capacity = capacities[candidate.name]
        if not capacity:
            raise StartFailed("no room\nand more")
        return bracket(
            candidate, of_capacity(capacity), LEVEL, first_per_s=1, to_beat_per_s=to_beat
        )

    plans = [Candidate(name, {"X": name}) for name in capacities]
    found, untried = search(plans, try_out, clock=lambda: now, ends_at=ends_at)
    return found, untried, tried


def test_the_best_plan_wins_and_one_that_cannot_start_says_why() -> None:
    found, untried, _ = outcomes({"a": 3, "b": 12, "c": 0, "d": 5}, start_s=1, ends_at=100)
    assert found[0].candidate.name == "b"
    assert untried == []
    refused = next(one for one in found if one.candidate.name == "c")
    assert refused.ended == "cannot start: no room"
    report = Report("300/100", LEVEL, tuple(found), 60.0)
    assert report.winner is found[0]
    text = "\n".join(report.lines())
    assert "winner: b\nexport X='b'" in text
    told = json.loads(json.dumps(report.as_json()))
    assert (told["winner"], told["export"]) == ("b", {"X": "b"})


def test_the_budget_ends_the_search_before_another_start_would_pass_it() -> None:
    found, untried, tried = outcomes({"a": 3, "b": 12, "c": 20}, start_s=40, ends_at=90)
    assert tried == ["a", "b"]
    assert untried == ["c"]
    report = Report("300/100", LEVEL, tuple(found), 80.0, tuple(untried))
    assert report.sureness.startswith("not sure; not tried: c")


def test_no_plan_takes_the_time_of_those_that_come_after_it() -> None:
    outcomes({"a": 3, "b": 2, "c": 1, "d": 1}, start_s=10, ends_at=100)
    assert shares == [25, 30, 40, 70]


def test_it_is_sure_only_where_brackets_do_not_meet() -> None:
    def one(name: str, kept: float, lost: float) -> Outcome:
        return Outcome(Candidate(name, {}), kept, lost, "narrow enough")

    apart = Report("", LEVEL, (one("a", 10, 11), one("b", 5, 5.5)), 1.0)
    assert apart.sureness.startswith("sure; one run a rate")
    close = Report("", LEVEL, (one("a", 10, 11), one("b", 9, 12)), 1.0)
    assert close.sureness.startswith("not sure; b keeps between 9 and 12")
    none = Report("", LEVEL, (one("a", 0, 1),), 1.0)
    assert "no plan was tried at any rate: the column on the right says why" in none.lines()
    assert none.winner is None
    assert none.sureness == "no plan kept the level"


def names(gpus: str, **environ: str) -> list[str]:
    return [one.name for one in tune_run.candidates(environ, parse_gpus(gpus))]


def test_the_candidates_are_plans_that_can_be() -> None:
    assert names("2xH100", SPECULATIVE_DRAFT_MODEL_PATH="") == [
        "unified × 2",
        "unified × 2, EAGLE3",
        "PD 1+1",
        "PD 1+1, EAGLE3",
        "unified × 2, chunk 512",
        "unified × 2, chunk 512, EAGLE3",
        "unified × 2, chunk 2048",
        "unified × 2, chunk 2048, EAGLE3",
        "unified × 1, TP 2",
    ]  # that draft's 7 KV heads cannot be split by 2
    assert names("cpu") == ["unified × 2", "unified × 2, EAGLE", "PD 1+1", "PD 1+1, EAGLE"]


def test_what_the_user_set_is_kept_in_every_candidate() -> None:
    found = tune_run.candidates({"ENGINE_ARGS": '{"page_size": 16}'}, parse_gpus("2xH100"))
    chunked = [one for one in found if "chunk 512" in one.name]
    assert json.loads(chunked[0].settings["ENGINE_ARGS"])["page_size"] == 16
    assert [one.name for one in found if "EAGLE" in one.name] != []
    fixed = tune_run.candidates({"PD_MODE": "off"}, parse_gpus("2xH100"))
    assert any("unified" in one.name for one in fixed)


def test_a_trace_is_read_and_a_bad_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text('{"prompt": 30, "answer": 3}\n\n{"prompt": 4, "answer": 9, "at": 0.5}\n')
    assert tune_run.read_trace(str(file)) == [tune_run.Asked(30, 3), tune_run.Asked(4, 9)]
    for bad in ("{}", "3", "x", '{"prompt": 0, "answer": 1}', '{"prompt": 1}'):
        file.write_text(f'{{"prompt": 30, "answer": 3}}\n{bad}\n')
        with pytest.raises(SettingsError, match=r"line 2: .*wanted a JSON object with prompt"):
            tune_run.read_trace(str(file))
    with pytest.raises(SettingsError, match="No such file"):
        tune_run.read_trace(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--prompt", "30"), "wanted --prompt and --answer, or --trace"),
        ((), "wanted --prompt and --answer, or --trace"),
        (("--prompt", "3", "--answer", "3", "--trace", "f"), "or --trace"),
    ],
)
def test_a_traffic_that_is_no_traffic_is_refused(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["tune", *arguments], {}) == cli.REFUSED
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(("text", "seconds"), [("15m", 900), ("90s", 90), ("1h", 3600), ("7", 7)])
def test_a_budget_is_read(text: str, seconds: float) -> None:
    assert cli._span(text) == seconds


@pytest.mark.parametrize(
    ("option", "value"), [("--budget", "soon"), ("--budget", "m"), ("--quantile", "1.5")]
)
def test_a_bad_budget_or_share_is_refused(option: str, value: str) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["tune", option, value], {})
    assert caught.value.code == 2


def test_no_plan_is_a_refusal() -> None:
    environ = {"DEVICE": "cpu"}
    with pytest.raises(PlanRefused, match="see pd-eagle plan, and --only"):
        tune_run.run(environ, [tune_run.Asked(3, 3)], LEVEL, 1.0, lambda line: None, "no such")
