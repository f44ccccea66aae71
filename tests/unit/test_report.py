"""The page of measurements, and its pictures, are what the results say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from benchmarks import plots, report
from benchmarks.provenance import RESULTS
from benchmarks.sections import SECTIONS

if TYPE_CHECKING:
    from pathlib import Path

SERVING: dict[str, Any] = {
    "summary": {
        "table": [
            {"system": "ours", "rate": "1", "ttft_p50_ms": 10, "tokens_per_s": 5},
            {"system": "ours", "rate": "inf", "ttft_p50_ms": 40, "tokens_per_s": 9},
            {"system": "theirs", "rate": "inf", "ttft_p50_ms": 50, "tokens_per_s": 8},
        ]
    }
}
INTERFERENCE: dict[str, Any] = {"runs": [{"plan": "PD", "raw": {"gaps_ms": [30.0, 10.0]}}]}
FRONT: dict[str, Any] = {"summary": {"table": [{"streams": 8, "cpu_us_per_token": 90}]}}


def test_the_page_is_made_from_the_results() -> None:
    assert report.PAGE.read_text() == report.page(), "run python -m benchmarks.report"


def test_every_result_is_on_the_page() -> None:
    assert {path.stem for path in RESULTS.glob("*.json")} <= SECTIONS.keys()


def test_every_picture_of_a_result_is_there_and_no_other() -> None:
    wanted = {p for name, found in report.results().items() for p in plots.names(name, found)}
    assert {path.stem for path in report.PLOTS.glob("*.png")} == wanted


@pytest.mark.parametrize(
    ("section", "name", "result", "expected"),
    [
        ("serving", "serving_ttft", SERVING, {"ours": [(0, 10), (1, 40)], "theirs": [(1, 50)]}),
        ("serving", "serving_tokens", SERVING, {"ours": [(0, 5), (1, 9)], "theirs": [(1, 8)]}),
        ("interference", "interference", INTERFERENCE, {"PD": [(10, 0.5), (30, 1)]}),
        ("front", "front", FRONT, {"front": [(8, 90)]}),
    ],
)
def test_a_picture_shows_the_figures(
    section: str, name: str, result: Any, expected: dict[str, list[tuple[float, float]]]
) -> None:
    assert plots.lines(plots.figure(section, name, result)) == expected


def test_rows_of_another_form_make_no_picture() -> None:
    assert plots.names("front", FRONT) == ["front"]
    assert plots.names("front", {"summary": {"table": [{"streams": 8}]}}) == []
    assert plots.names("front", {"summary": {}}) == []


def test_the_same_result_gives_the_same_bytes(tmp_path: Path) -> None:
    first = plots.write("serving", "serving_ttft", SERVING, tmp_path / "a").read_bytes()
    second = plots.write("serving", "serving_ttft", SERVING, tmp_path / "b").read_bytes()
    assert first == second
