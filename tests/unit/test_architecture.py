"""docs/architecture.md says what the code says: its modules, its wings, and who imports whom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_layers import OWN, WINGS, own, wing

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text("utf-8")
PAIRS = [(importer, imported) for importer in WINGS for imported in WINGS if importer != imported]


def chapter(title: str) -> str:
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def picture() -> list[str]:
    """The lines of the drawing that begin with a word."""
    (drawn,) = re.findall(r"^```text\n(.*?)^```$", chapter("The wings"), re.M | re.S)
    return [line for line in drawn.splitlines() if line[0].isalpha()]


def told_imports() -> dict[str, set[str]]:
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", chapter("The wings"), re.M)
    return {importer: set(re.findall(r"`(\w+)`", imported)) for importer, imported in rows}


@pytest.mark.parametrize("named", sorted(set(re.findall(r"\b(?:\w+/)*\w+\.py\b", TEXT))))
def test_every_module_named_exists(named: str) -> None:
    assert (ROOT / "pd_eagle" / named).is_file() or (ROOT / named).is_file()


@pytest.mark.parametrize("named", sorted(set(re.findall(r"`(\w+)/`", TEXT))))
def test_every_folder_named_exists(named: str) -> None:
    assert (ROOT / "pd_eagle" / named).is_dir()


def test_the_wings_are_drawn_in_the_order_of_the_layer_test() -> None:
    assert [line.split()[0] for line in picture()] == list(reversed(WINGS))


def test_the_modules_drawn_stand_in_their_wing() -> None:
    drawn = [(line.split()[0], re.findall(r"(\w+)\.py", line)) for line in picture()]
    assert {(name, wing(module)) for name, modules in drawn for module in modules} == {
        ("top", "top"),
        ("ground", "ground"),
    }


def test_the_table_has_every_wing() -> None:
    assert list(told_imports()) == list(reversed(WINGS))


@pytest.mark.parametrize(("importer", "imported"), PAIRS)
def test_who_imports_whom(importer: str, imported: str) -> None:
    found = [
        f"{name} imports {found.target}"
        for name in OWN
        for found in own(name)
        if (wing(name), wing(found.target)) == (importer, imported)
    ]
    assert bool(found) is (imported in told_imports()[importer]), found


def test_the_steps_of_both_lives_are_numbered() -> None:
    for title in ("The life of a request", "The life of a worker"):
        steps = [int(number) for number in re.findall(r"^(\d+)\. ", chapter(title), re.M)]
        assert steps == list(range(1, len(steps) + 1))
        for step in re.split(r"^\d+\. ", chapter(title), flags=re.M)[1:-1]:
            assert re.search(r"\w+\.py", step), f"no module in: {step}"


def test_the_six_questions_are_answered_by_a_wing_and_its_module() -> None:
    rows = re.findall(r"^\| .+\? \| `(\w+)` \| `(\w+)/\w+\.py`", chapter("Where to look"), re.M)
    assert len(rows) == 6
    assert all(first == second and first in WINGS for first, second in rows)
