"""Draws what `pd-eagle tune` found from its JSON: a group of bars a level, a bar a plan."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from pd_eagle.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.figure import Figure

_GROUP = 0.8  # width of a level's bars together


def check(path: Path) -> None:
    """Raise `SettingsError` where there is nothing to draw with, or `path` names no format."""
    if importlib.util.find_spec("matplotlib") is None:
        raise SettingsError(
            "--plot: wanted matplotlib, which is not installed: pip install 'pd-eagle[plot]', or"
            " leave --plot out (the same figures are in --json)"
        )
    formats = sorted(_figure().canvas.get_supported_filetypes())
    if path.suffix.removeprefix(".").lower() not in formats:
        raise SettingsError(
            f"--plot {str(path)!r}: wanted a name that ends in one of {', '.join(formats)}"
        )


def _figure() -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(8, 4.2), layout="constrained")


def bars(found: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return, by plan, the rate that it keeps at each level, in requests/s."""
    names = dict.fromkeys(name for level in found["levels"] for name in level["plans"])
    return {
        name: [level["plans"][name]["keeps_per_s"] for level in found["levels"]] for name in names
    }


def write(found: Mapping[str, Any], path: Path) -> None:
    """Draw the report's JSON into `path`; its suffix says in which format."""
    drawn = _figure()
    axes = drawn.subplots()
    plans, levels = bars(found), found["levels"]
    width = _GROUP / max(len(plans), 1)
    for number, (name, rates) in enumerate(plans.items()):
        places = [level + (number - (len(plans) - 1) / 2) * width for level in range(len(levels))]
        axes.bar(places, rates, width, label=name)
    labels = [level["level"].replace(", ", "\n") for level in levels]
    axes.set_xticks(range(len(levels)), labels, fontsize="small")
    axes.set_ylabel("requests/s that keep the level")
    axes.set_ylim(bottom=0)
    axes.set_title(found["traffic"], fontsize="medium")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize="small")
    drawn.savefig(path, dpi=100)
