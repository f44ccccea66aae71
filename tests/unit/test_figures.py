"""Every measured figure in a document stands in a committed result, or has a reason not to.

A figure is a number with a unit of measurement, or a decimal alone in a cell of a table. It must be
found in the results under a key that fits its unit, after rounding to the digits that are shown.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SOURCES = ("benchmarks/results", "pd_eagle/demo")
NOT_OURS = {".git", ".venv", ".tools", ".cache", ".pytest_cache", "build", "dist"}

#: Unit → what the path to the number in its JSON must hold.
UNITS = {
    "µs": "_us",
    "ms": "_ms|gaps|long_prompts",
    "s": "_s(/|_|$)|seconds",
    "tokens/s": "tokens_per_s",
    "requests/s": "requests_per_s",
    "GB/s": "gb_per_s",
    "MiB": "mib",
    "GiB": "gib",
    "MB": "mb",
    "GB": "gb",
    "cores": "cores",
    "nats": "gap",
    "%": "percent|share|ratio",
    "×": "ratio",
    "times": "ratio",
    "tokens a verification": "tokens_per_verification|accept_length",
    "tokens per verification": "tokens_per_verification|accept_length",
}
CELL, P_VALUE = "", "p ="
_KEYS = UNITS | {CELL: "", P_VALUE: "(^|/)p$"}

_NUMBER = r"(?<![\w.,:=/-])(\d+(?:,\d{3})+|\d+(?:\.\d+)?)"
_ALTERNATIVES = "|".join(map(re.escape, sorted(UNITS, key=len, reverse=True)))
# "30 and 32 s" are two figures: a unit holds for all numbers of a list before it.
_LISTED = rf"(?:(?:,| and| to| or|–)\s?{_NUMBER})?"
_WITH_UNIT = re.compile(rf"{_NUMBER}{_LISTED}[ \n]?({_ALTERNATIVES})(?![\w/])")
_P = re.compile(r"\bp = (\d\.\d+)")
# "…, 2,6,10): 2.37." has its unit in the sentence before.
_END_OF_CLAUSE = re.compile(r"(?<=[:)] )(\d\.\d{2,})(?=[.;])")
_CELL = re.compile(r"(?<=\|) *\**(\d+\.\d+)\** *(?=\|)")

_CARD = "pd_eagle/demo/draft/README.md"
_SIZE = "the size of a download or of a file, not a measurement"
_TRAINING = "told of the run that trained the draft, which left no JSON"
_LOSS = "a weight in a formula: a factor, not a ratio that was measured"
_NOT_KEPT = "told of a run while the draft was made; its JSON was not kept"
#: (document, figure) → why it stands in no result.
ELSEWHERE: dict[tuple[str, str], str] = {
    ("README.md", "12 GB"): _SIZE,
    ("README.md", "5 GB"): _SIZE,
    ("README.md", "270 MB"): _SIZE,
    ("README.md", "512 MiB"): "the default size of an engine's KV pool: engine_args.py",
    **{("README.md", f): "a bound: bodies.py and app.py" for f in ("1 MiB", "16 MiB")},
    **{("benchmarks/gpu/README.md", f): _SIZE for f in ("900 MiB", "5 GB", "155 MiB")},
    (_CARD, "8.4 MB"): _SIZE,
    (_CARD, "70 %"): "how the training's prompts were answered: an argument's default",
    **{(_CARD, figure): _LOSS for figure in ("1.0 ×", "0.1 ×")},
    **{(_CARD, figure): _TRAINING for figure in ("33 s", "18 s", "48 s", "101 s", "1.95")},
    **{(_CARD, figure): _NOT_KEPT for figure in ("30 s", "32 s", "35 s", "27 s")},
}


#: How many of what a machine or a plan has: no ratio.
_COUNT = re.compile(r"(?<![\d.,])\d+ × (?=CODE|AMD|Intel|NVIDIA|TP\d)")


@dataclass(frozen=True)
class Figure:
    document: str
    number: str
    unit: str

    @property
    def key(self) -> tuple[str, str]:
        return self.document, f"{self.number} {self.unit}".strip()


@dataclass(frozen=True)
class Value:
    path: str
    value: float


def figures(document: str, text: str) -> Iterator[Figure]:
    """Yield the measured figures of `text`; code blocks and examples are none."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    text = re.sub(r"`[^`\n]*`", "CODE", text)
    text = _COUNT.sub("", text)
    for found in _WITH_UNIT.finditer(text):
        first, second, unit = found.groups()
        yield from (Figure(document, number, unit) for number in (first, second) if number)
    yield from (Figure(document, number, P_VALUE) for number in _P.findall(text))
    yield from (Figure(document, number, CELL) for number in _CELL.findall(text))
    yield from (Figure(document, number, CELL) for number in _END_OF_CLAUSE.findall(text))


def values(at: object, path: str = "") -> Iterator[Value]:
    """Yield every number of a result but the raw ones: those match anything."""
    if isinstance(at, dict):
        for name, below in at.items():
            if not _is_raw(name, below):
                yield from values(below, f"{path}/{name}")
    elif isinstance(at, list):
        if len(at) <= 8 or not all(isinstance(one, float | int) for one in at):
            for below in at:
                yield from values(below, path)
    elif isinstance(at, float | int) and not isinstance(at, bool):
        yield Value(path, at)


def _is_raw(name: str, below: object) -> bool:
    return (
        name == "raw"
        and isinstance(below, dict)
        and all(isinstance(one, list) for one in below.values())
    )


def stands_in(figure: Figure, results: list[Value]) -> bool:
    digits = len(figure.number.partition(".")[2])
    shown, key = float(figure.number.replace(",", "")), re.compile(_KEYS[figure.unit])
    half = 0.5 * 10**-digits + 1e-9

    def fits(one: Value) -> bool:
        is_share = figure.unit == "%" and "percent" not in one.path
        return bool(abs(one.value * (100 if is_share else 1) - shown) <= half)

    return any(fits(one) for one in results if key.search(one.path))


def committed(document: str = "") -> list[Value]:
    """Return what `document` may speak of: the draft's card of the draft alone."""
    sources = [source for source in SOURCES if document.startswith(source)] or SOURCES
    paths = [path for source in sources for path in sorted((ROOT / source).rglob("*.json"))]
    return [value for path in paths for value in values(json.loads(path.read_text()))]


def documents() -> dict[str, str]:
    found = {
        str(path.relative_to(ROOT)): path.read_text()
        for path in sorted(ROOT.rglob("*.md"))
        if not NOT_OURS & set(path.relative_to(ROOT).parts)
    }
    comments = [li for li in (ROOT / "Dockerfile").read_text().splitlines() if li.startswith("#")]
    return found | {"Dockerfile": "\n".join(comments)}


def missing(texts: dict[str, str]) -> list[Figure]:
    lost = []
    for document, text in texts.items():
        results = committed(document)
        lost += [one for one in figures(document, text) if not stands_in(one, results)]
    return lost


def test_every_figure_stands_in_a_result() -> None:
    lost = [one.key for one in missing(documents()) if one.key not in ELSEWHERE]
    assert lost == [], "measure it, or name where it comes from in ELSEWHERE"


def test_no_exception_is_left_over() -> None:
    needed = {one.key for one in missing(documents())}
    assert ELSEWHERE.keys() <= needed


@pytest.mark.parametrize("name", ["README.md", "benchmarks/README.md", _CARD])
def test_a_planted_figure_is_found_out(name: str) -> None:
    texts = documents()
    planted = texts | {name: texts[name] + "\nIt takes 98765.4 ms, 98765.4 × as long.\n"}
    new = [one.key for one in missing(planted)]
    assert new.count((name, "98765.4 ms")) == 1
    assert new.count((name, "98765.4 ×")) == 1


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ready after 12.3 s, with 2,982 MiB", ["12.3 s", "2,982 MiB"]),
        ("took 30 and 32 s", ["30 s", "32 s"]),
        ("1.4 × or 1.5 times; 40 % of 73 tokens/s", ["1.4 ×", "1.5 times", "40 %", "73 tokens/s"]),
        ("2.37 tokens a verification (p = 0.75)", ["2.37 tokens a verification", "0.75 p ="]),
        ("| ours | **2.55** | 3.04 |", ["2.55", "3.04"]),
        ("in separate engines (NIXL, 2,6,10): 2.37.", ["2.37"]),
        ("SGLang 0.5.23, 8 sentences, `sleep 5 s`, TP 3, port 8000", []),
        ("```sh\nsleep 5 s\n```", []),
        ("2 × AMD EPYC, 1 × `NVIDIA H200`, 1 × TP1; 2 × as long", ["2 ×"]),
    ],
)
def test_what_is_a_figure(text: str, found: list[str]) -> None:
    assert [one.key[1] for one in figures("d", text)] == found


@pytest.mark.parametrize(
    ("number", "unit", "there"),
    [
        ("12.1", "s", True),
        ("12.13", "s", True),
        ("12.2", "s", False),
        ("12.1", "ms", False),
        ("12", "", True),
        ("39", "%", True),
        ("7", "s", False),
    ],
)
def test_a_figure_stands_under_a_fitting_key(number: str, unit: str, there: bool) -> None:
    result: dict[str, Any] = {"ready_s": 12.13, "ratio": 0.39, "raw": {"took_s": [7.0]}}
    assert stands_in(Figure("d", number, unit), list(values(result))) is there
