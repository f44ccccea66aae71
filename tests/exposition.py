"""What `/metrics` says, read by Prometheus' own parsers and by promtool, and who uses it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse

if TYPE_CHECKING:
    from collections.abc import Iterator

DASHBOARD = Path(__file__).parent.parent / "deploy/grafana-dashboard.json"
_SERIES = re.compile(r"\b(?:pd_eagle_|sglang:)\w+")
_RATED = re.compile(r"\b(?:rate|increase)\((\S+?)\{")
#: promtool's advice about names: `sglang:` and its units are SGLang's own, not ours to change.
_OURS = "pd_eagle_"


def types_of(text: str, *, openmetrics: bool = False) -> dict[str, str]:
    """Return every sample's name with its family's type; a series that is there twice fails."""
    found: dict[str, str] = {}
    seen: set[tuple[str, tuple[tuple[str, str], ...]]] = set()
    for family in (parse_openmetrics if openmetrics else parse)(text):
        for sample in family.samples:
            whole = (sample.name, tuple(sorted(sample.labels.items())))
            assert whole not in seen, f"{whole} is there twice"
            seen.add(whole)
            found[sample.name] = family.type
    return found


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return loaded


def expressions() -> Iterator[str]:
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]


def used_by_the_dashboard(prefix: str) -> set[str]:
    """Return the samples' names with `prefix` in all expressions."""
    names = {name for expr in expressions() for name in _SERIES.findall(expr)}
    return {name for name in names if name.startswith(prefix)}


def misused(expr: str, types: dict[str, str]) -> list[str]:
    """Return what is wrong with `expr`, given the types of all that is there.

    A counter and a histogram's parts are rated and nothing else is; a quantile is of buckets.
    """
    rated = set(_RATED.findall(expr))
    problems = [f"histogram_quantile without buckets: {expr}"] if _no_buckets(expr) else []
    for name in _SERIES.findall(expr):
        if name not in types:
            problems.append(f"{name} does not exist")
        elif (types[name] in ("counter", "histogram")) != (name in rated):
            problems.append(f"{name}, a {types[name]}, in {expr}")
        elif name.endswith("_bucket") and "histogram_quantile(" not in expr:
            problems.append(f"buckets without histogram_quantile: {expr}")
    return problems


def _no_buckets(expr: str) -> bool:
    quantile = "histogram_quantile(" in expr
    return quantile and not ("by (le" in expr and all("_bucket" in n for n in _RATED.findall(expr)))


def promtool_complaints(text: str) -> list[str] | None:
    """Return what `promtool check metrics` says of our series; None where there is no promtool.

    Raises AssertionError for what it cannot parse, whoever wrote it.
    """
    if (promtool := shutil.which("promtool")) is None:
        return None
    run = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    # 3: it has read all of it and has advice.
    assert run.returncode in (0, 3), run.stderr
    said = (run.stdout + run.stderr).splitlines()
    return [line for line in said if line.startswith(_OURS)]
