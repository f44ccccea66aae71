"""What `pd-eagle tune` tries, what it sends, and what it refuses before it starts anything."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest

from pd_eagle import cli, option_types, tune_cli, tune_plot, tune_run
from pd_eagle.errors import PlanRefused, SettingsError
from pd_eagle.plan.devices import parse_gpus
from pd_eagle.tune import Level
from pd_eagle.tune_traffic import Asked, Traffic, read_trace

if TYPE_CHECKING:
    from pathlib import Path

LEVEL = Level(first_s=1.0, mean_gap_s=0.02)


def names(gpus: str, **environ: str) -> list[str]:
    return [one.name for one in tune_run.candidates(environ, parse_gpus(gpus))]


def test_the_candidates_are_plans_that_can_be() -> None:
    plain = ["unified × 2", "PD 1+1", "unified × 2, chunk 512", "unified × 2, chunk 2048"]
    assert names("2xH100", SPECULATIVE_DRAFT_MODEL_PATH="") == [
        *(name for one in plain for name in (one, f"{one}, EAGLE3")),
        "unified × 1, TP 2",  # that draft's 7 KV heads cannot be split by 2
        *(f"{one}, EAGLE3 tree" for one in plain),
    ]
    assert names("cpu") == ["unified × 2", "unified × 2, EAGLE", "PD 1+1", "PD 1+1, EAGLE"]


def test_eagle_that_the_user_set_is_tried_against_none() -> None:
    found = tune_run.candidates({"SPECULATIVE_ALGORITHM": "EAGLE"}, parse_gpus("cpu"))
    assert [one.name for one in found] == [
        "unified × 2",
        "unified × 2, EAGLE",
        "PD 1+1",
        "PD 1+1, EAGLE",
    ]
    assert [one.settings.get("SPECULATIVE_ALGORITHM") for one in found] == ["", None, "", None]
    tree = {"SPECULATIVE_NUM_STEPS": "3", "SPECULATIVE_EAGLE_TOPK": "1"}
    chain = tree | {"SPECULATIVE_NUM_DRAFT_TOKENS": "4"}
    assert not any("tree" in name for name in names("2xH100", **chain))


def test_what_the_user_set_is_kept_in_every_candidate() -> None:
    found = tune_run.candidates({"ENGINE_ARGS": '{"page_size": 16}'}, parse_gpus("2xH100"))
    chunked = [one for one in found if "chunk 512" in one.name]
    assert json.loads(chunked[0].settings["ENGINE_ARGS"])["page_size"] == 16
    assert [one.name for one in found if "EAGLE" in one.name] != []
    fixed = tune_run.candidates({"PD_MODE": "off"}, parse_gpus("2xH100"))
    assert any("unified" in one.name for one in fixed)


def trace(folder: Path, *lines: str) -> str:
    file = folder / "trace.jsonl"
    file.write_text("\n".join(lines))
    return str(file)


def test_a_trace_is_read(tmp_path: Path) -> None:
    path = trace(tmp_path, '{"prompt": 30, "answer": 3}', "", '{"prompt": 4, "answer": 9}')
    assert read_trace(path) == [Asked(30, 3), Asked(4, 9)]
    late = '{"prompt": 30, "answer": 3, "shared": 0.5, "time": 7.5}'
    path = trace(tmp_path, late, '{"prompt": 4, "answer": 9, "time": 2}')
    assert read_trace(path) == [Asked(4, 9, 0.0, 2.0), Asked(30, 3, 0.5, 7.5)]


@pytest.mark.parametrize(
    "bad",
    [
        *("{}", "3", "x", '{"prompt": 0, "answer": 1}', '{"prompt": 1}'),
        '{"prompt": 1, "answer": 1, "shared": 1.5}',
        '{"prompt": 1, "answer": 1, "time": -1}',
        '{"prompt": 1, "answer": 1, "time": Infinity}',
    ],
)
def test_a_bad_line_of_a_trace_is_named(tmp_path: Path, bad: str) -> None:
    path = trace(tmp_path, '{"prompt": 30, "answer": 3}', bad)
    with pytest.raises(SettingsError, match=r"line 2: .*wanted a JSON object with prompt"):
        read_trace(path)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ((), "wanted at least one line"),
        (('{"prompt": 1, "answer": 1}', '{"prompt": 1, "answer": 1, "time": 1}'), "1 of 2 lines"),
        (('{"prompt": 1, "answer": 1, "time": 1}',), "every time is 1: wanted several times"),
    ],
)
def test_a_trace_that_is_none_is_refused(tmp_path: Path, lines: tuple[str, ...], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        read_trace(trace(tmp_path, *lines))
    with pytest.raises(SettingsError, match="No such file"):
        read_trace(str(tmp_path / "none"))


def test_prompts_have_their_share_in_common_and_no_more() -> None:
    traffic = Traffic([Asked(100, 5, 0.5), Asked(40, 5, 0.5)], vocab_size=50_000)
    (_, first), (_, second), (_, third) = traffic.arrivals(3, 1.0)
    one, two, three = (traffic.prompt(asked) for asked in (first, second, third))
    assert [len(ids) for ids in (one, two, three)] == [100, 40, 100]
    assert one[:50] == three[:50]
    assert two[:20] == one[:20]
    assert one[50:] != three[50:]
    assert two[20:] != one[20:40]
    alone = Traffic([Asked(100, 5)], vocab_size=50_000)
    assert alone.prompt(Asked(100, 5))[0] != alone.prompt(Asked(100, 5))[0]


def test_random_moments_lie_within_the_trial() -> None:
    moments = [at for at, _ in Traffic([Asked(3, 3)], 10).arrivals(20, 4.0)]
    assert len(moments) == 20
    assert moments == sorted(moments)
    assert moments[0] >= 0
    assert moments[-1] <= 4.0


def test_times_of_a_trace_are_stretched_to_the_rate() -> None:
    asked = [Asked(3, number, 0.0, at) for number, at in ((1, 5.0), (2, 6.0), (3, 9.0))]
    sent = list(Traffic(asked, 10).arrivals(6, 24.0))
    assert [one.answer for _, one in sent] == [1, 2, 3, 1, 2, 3]
    # Gaps of 1 and 3 s, and their mean before the trace begins again.
    assert [at for at, _ in sent] == pytest.approx([0, 2, 8, 12, 14, 20])
    together = [Asked(3, 3, 0.0, at) for at in (0.0, 0.0, 0.0, 1.0)]
    assert [at for at, _ in Traffic(together, 10).arrivals(2, 5.0)] == [0.0, 0.0]
    assert "at its own times" in str(Traffic(asked, 10))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--prompt", "30"), "wanted --prompt and --answer, or --trace"),
        ((), "wanted --prompt and --answer, or --trace"),
        (("--prompt", "3", "--answer", "3", "--trace", "f"), "or --trace"),
        (("--prompt", "3", "--trace", "f"), "or --trace"),
        (("--shared", "0.5", "--trace", "f"), '"shared" in the lines'),
        (("--prompt", "3", "--answer", "3", "--json", "/no/such/x"), "--json '/no/such/x'"),
        (("--prompt", "3", "--answer", "3", "--plot", "x.what"), "wanted a name that ends in"),
    ],
)
def test_what_cannot_be_measured_or_kept_is_refused(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--plot" in arguments:
        pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert cli.main(["tune", *arguments], {}) == cli.REFUSED
    assert told in capsys.readouterr().err


def test_a_plot_without_matplotlib_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    arguments = ["tune", "--prompt", "3", "--answer", "3", "--plot", "x.png"]
    assert cli.main(arguments, {}) == cli.REFUSED
    assert "pip install 'pd-eagle[plot]'" in capsys.readouterr().err


def levels_of(*arguments: str) -> list[Level]:
    return tune_cli.levels(cli._parser().parse_args(["tune", *arguments]))


def test_levels_are_read() -> None:
    assert levels_of() == [Level(1.0, 0.05, math.inf, 0.95)]
    assert levels_of("--ttft", "2", "--gap-max", "0.1") == [Level(2.0, 0.05, 0.1, 0.95)]
    both = ("--level", "gap-mean=0.04", "--level", "ttft=0.5, gap-mean=0.02,gap-max=0.05")
    assert levels_of("--ttft", "2", "--quantile", "0.9", *both) == [
        Level(2.0, 0.04, math.inf, 0.9),
        Level(0.5, 0.02, 0.05, 0.9),
    ]
    assert len(levels_of("--level", "ttft=1", "--level", "ttft=1")) == 1


@pytest.mark.parametrize(("text", "seconds"), [("15m", 900), ("90s", 90), ("1h", 3600), ("7", 7)])
def test_a_budget_is_read(text: str, seconds: float) -> None:
    assert option_types.span(text) == seconds


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--budget", "soon", "wanted a time > 0"),
        ("--budget", "m", "wanted a time > 0"),
        ("--budget", "0s", "wanted a time > 0"),
        ("--quantile", "1.5", "wanted a share"),
        ("--shared", "2", "wanted a share"),
        ("--only", "(", "wanted a regular expression"),
        ("--level", "ttft=soon", "ttft: 'soon': wanted a number of seconds"),
        ("--level", "speed=1", "wanted some of ttft, gap-mean, gap-max, quantile"),
        ("--level", "ttft=1,ttft=2", "each once"),
        ("--level", "", "wanted some of"),
    ],
)
def test_a_bad_value_is_refused(
    option: str, value: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["tune", option, value], {})
    assert caught.value.code == 2
    assert told in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("budget_s", "first_s", "seconds"),
    [(900, 1.0, 15), (270, 0.5, 6), (210, 2.0, 8), (60, 0.5, 3), (120, 30.0, 6), (9000, 1.0, 15)],
)
def test_a_trial_is_long_enough_to_see_a_queue(
    budget_s: float, first_s: float, seconds: float
) -> None:
    levels = [Level(0.1, 0.02), Level(first_s, 0.02)]
    assert tune_run.trial_seconds(budget_s, levels) == pytest.approx(seconds)


def test_no_plan_is_a_refusal() -> None:
    environ = {"DEVICE": "cpu"}
    with pytest.raises(PlanRefused, match="see pd-eagle plan, and --only"):
        tune_run.run(environ, [Asked(3, 3)], [LEVEL], 1.0, lambda line: None, "no such")


FOUND: dict[str, Any] = {
    "traffic": "300/100",
    "levels": [
        {"level": "loose", "plans": {"b": {"keeps_per_s": 12.0}, "a": {"keeps_per_s": 6.0}}},
        {"level": "tight", "plans": {"a": {"keeps_per_s": 5.0}, "b": {"keeps_per_s": 2.0}}},
    ],
}


def test_the_plot_has_a_bar_a_plan_at_each_level(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert tune_plot.bars(FOUND) == {"b": [12.0, 2.0], "a": [6.0, 5.0]}
    tune_plot.write(FOUND, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
