"""Results are written with one sample a line, and say the same as before."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.compact_json import as_text, main, write
from benchmarks.provenance import RESULTS, ROOT

if TYPE_CHECKING:
    from pathlib import Path

NUMBERS = [0.001 * number for number in range(1000)]
ROW = {"system": "x" * 60, "rate": 0.25, "met": None, "reason": "y" * 60}
NESTED: dict[str, Any] = {"summary": ROW, "table": [ROW, ROW], "raw": {"gaps_ms": NUMBERS}}


def test_the_values_stay() -> None:
    assert json.loads(as_text(NESTED)) == NESTED
    assert json.loads(as_text({1: (2, 3)})) == {"1": [2, 3]}


def test_a_sample_takes_one_line() -> None:
    lines = [line.strip() for line in as_text(NESTED).splitlines()]
    assert lines.count(json.dumps(ROW)) + lines.count(json.dumps(ROW) + ",") == 2
    assert f'"gaps_ms": {json.dumps(NUMBERS)}' in lines


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"p50": 1, "of": [1, 2]}, '{"p50": 1, "of": [1, 2]}\n'),
        ({"summary": ROW}, json.dumps({"summary": ROW}, indent=1) + "\n"),
        (["z" * 60, "z" * 60], json.dumps(["z" * 60, "z" * 60], indent=1) + "\n"),
        ("z" * 200, json.dumps("z" * 200) + "\n"),
    ],
)
def test_what_is_broken_into_lines(value: object, text: str) -> None:
    assert as_text(value) == text


def test_a_file_is_rewritten_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(NESTED, indent=1))
    monkeypatch.setattr("sys.argv", ["compact_json", str(path)])
    assert main() == 0
    assert path.read_text() == as_text(NESTED)
    write(path, {})
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("result.json", "{}\n")]


def test_every_committed_result_is_compact() -> None:
    draft = ROOT / "pd_eagle/demo/draft"
    wordy = [
        str(path)
        for path in [*RESULTS.rglob("*.json"), draft / "evaluation.json", draft / "sglang.json"]
        if path.read_text() != as_text(json.loads(path.read_text()))
    ]
    assert wordy == [], "run python -m benchmarks.compact_json on them"
