"""Writes the README's tables of settings and its words on GPUs; does not know the other chapters.

`python -m tools.readme` writes it in place; a test fails when the two differ.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.gpu import page
from pd_eagle.plan import value_types
from pd_eagle.plan.setting_groups import GROUPS, TABLE

if TYPE_CHECKING:
    from pd_eagle.plan.setting import Setting

README = Path(__file__).parent.parent / "README.md"


def settings_table() -> str:
    """Return a table for each group: variable, default, meaning, accepted values and alias."""
    return "\n".join(_group_table(title, group) for title, group in GROUPS.items())


def _group_table(title: str, group: type) -> str:
    rows = [
        f"| `{row.variable}` | {_cell(row.shown_default)} | {_cell(_meaning(row))} |"
        for row in TABLE
        if row.group == title
    ]
    head = [f"**{title}**: {group.__doc__}", "", "| variable | default | |", "|---|---|---|"]
    return "\n".join([*head, *rows, ""])


def with_settings(text: str) -> str:
    """Return the README with its tables of settings updated. Raises `ValueError` without marks."""
    return _between("settings", settings_table(), text)


def with_gpus(text: str) -> str:
    """Return the README with what was measured on GPUs. Raises `ValueError` without marks."""
    return _between("gpus", page.short(), text)


def _between(mark: str, wanted: str, text: str) -> str:
    place = re.compile(rf"(?<=<!-- {mark} -->\n).*?(?=<!-- end of {mark} -->)", re.DOTALL)
    changed, found = place.subn(lambda _: wanted, text)
    if found != 1:
        raise ValueError(f"{found} places between the marks of {mark}: wanted one")
    return changed


def _meaning(row: Setting) -> str:
    wanted = "" if row.type is value_types.TEXT else f" Wanted: {row.type.wanted}."
    return row.doc + wanted + row.alias_note


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    README.write_text(with_gpus(with_settings(README.read_text("utf-8"))), "utf-8")
