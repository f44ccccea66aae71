"""The page of measurements is what its results say."""

from __future__ import annotations

from benchmarks import report
from benchmarks.provenance import RESULTS


def test_the_page_is_made_from_the_results() -> None:
    assert report.PAGE.read_text() == report.page(), "run python -m benchmarks.report"


def test_every_result_is_on_the_page() -> None:
    assert {path.stem for path in RESULTS.glob("*.json")} <= report.SECTIONS.keys()
