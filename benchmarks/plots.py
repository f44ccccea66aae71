"""Draws the report's plots from its results; knows nothing of how they were measured.

The same result and matplotlib give the same bytes: no date is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matplotlib.axes import Axes

Result = dict[str, Any]


def _by_system(result: Result) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for row in result["summary"]["table"]:
        found.setdefault(row["system"], []).append(row)
    return found


def _rates(axes: Axes, result: Result) -> list[str]:
    names = list(dict.fromkeys(row["rate"] for row in result["summary"]["table"]))
    axes.set_xticks(range(len(names)), ["all at once" if n == "inf" else n for n in names])
    axes.set_xlabel("requests/s offered")
    return names


def _against_rate(axes: Axes, result: Result, what: str, label: str) -> None:
    names = _rates(axes, result)
    for system, rows in _by_system(result).items():
        places = [names.index(row["rate"]) for row in rows]
        axes.plot(places, [row[what] for row in rows], marker="o", label=system)
    axes.set_ylabel(label)
    axes.legend(fontsize="small")


def serving_ttft(axes: Axes, result: Result) -> None:
    _against_rate(axes, result, "ttft_p50_ms", "time to first token, median, ms")
    axes.set_yscale("log")


def serving_tokens(axes: Axes, result: Result) -> None:
    _against_rate(axes, result, "tokens_per_s", "tokens/s")


def interference(axes: Axes, result: Result) -> None:
    for run in result["runs"]:
        gaps = sorted(run["raw"]["gaps_ms"])
        axes.plot(gaps, [(n + 1) / len(gaps) for n in range(len(gaps))], label=run["plan"])
    axes.set_xscale("log")
    axes.set_xlabel("gap between two events of a stream, ms")
    axes.set_ylabel("share of gaps that are at most this")
    axes.legend(fontsize="small", loc="lower right")


def eagle_speed(axes: Axes, result: Result) -> None:
    trees: dict[str, list[Result]] = {}
    for row in result["summary"]["table"]:
        trees.setdefault(",".join(map(str, row["tree"])), []).append(row)
    for tree, rows in trees.items():
        axes.plot([r["batch"] for r in rows], [r["ratio"] for r in rows], marker="o", label=tree)
    axes.axhline(1, color="grey", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("requests at once")
    axes.set_ylabel("tokens/s with EAGLE / without")
    axes.legend(title="steps,topk,tokens", fontsize="small")


def front(axes: Axes, result: Result) -> None:
    rows = result["summary"]["table"]
    names = dict.fromkeys(row.get("system", "front") for row in rows)
    for name in names:
        mine = [row for row in rows if row.get("system", "front") == name]
        cost = [row["cpu_us_per_token"] for row in mine]
        axes.plot([row["streams"] for row in mine], cost, marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("streams at once")
    axes.set_ylabel("CPU of the front, µs a token")
    axes.legend(fontsize="small")


#: Section → file without suffix → what draws it.
PLOTS: dict[str, dict[str, Callable[[Axes, Result], None]]] = {
    "serving": {"serving_ttft": serving_ttft, "serving_tokens": serving_tokens},
    "interference": {"interference": interference},
    "eagle_speed": {"eagle_speed": eagle_speed},
    "front": {"front": front},
}


def names(section: str, result: Result) -> list[str]:
    """Return the plots of `section`; none if its result lacks the rows for them."""
    if section == "front" and not _has_front_rows(result):
        return []
    return list(PLOTS.get(section, {}))


def _has_front_rows(result: Result) -> bool:
    rows = result["summary"].get("table")
    return bool(rows) and all({"streams", "cpu_us_per_token"} <= row.keys() for row in rows)


def figure(section: str, name: str, result: Result) -> Figure:
    """Return one plot, not yet written."""
    drawn = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = drawn.subplots()
    PLOTS[section][name](axes, result)
    axes.grid(alpha=0.3)
    return drawn


def write(section: str, name: str, result: Result, folder: Path) -> Path:
    """Write one plot into `folder`, without date or software in its metadata."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.png"
    figure(section, name, result).savefig(path, dpi=100, metadata={"Software": None})
    return path


def lines(drawn: Figure) -> dict[str, list[tuple[float, float]]]:
    """Return the points of every curve by its label."""
    (axes,) = drawn.axes
    shown = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    return {
        str(line.get_label()): [
            (float(x), float(y))
            for x, y in zip(np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), strict=True)
        ]
        for line in shown
    }
