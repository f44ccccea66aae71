"""Writes the keyword arguments of `PDEngine` as typed dictionaries, for type checkers and editors.

`python -m tools.arguments` writes both modules in place; a test fails when they differ. SGLang's
own arguments are read from its source, without importing it.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from pd_eagle.plan.owned_arguments import OWNED, RENAMED
from pd_eagle.plan.setting_groups import GROUPS, TABLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PLAN = Path(__file__).parents[1] / "pd_eagle" / "plan"
SETTINGS, SGLANG = PLAN / "setting_arguments.py", PLAN / "sglang_arguments.py"

_SETTINGS = '''"""The settings as keyword arguments. Written by tools/arguments.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping


class SettingArguments(TypedDict, total=False):
    """Every setting; unset, or None, is its default (`pd-eagle serve --help`)."""

{fields}
'''
_SGLANG = '''"""SGLang's `ServerArgs` (0.5.23) without what are settings. By tools/arguments.py."""

from __future__ import annotations

from typing import Any, TypedDict


class SGLangArguments(TypedDict, total=False):
    """As `sglang.Engine` takes them; the engines check their values."""

{fields}
'''
_SCALARS = {"bool", "int", "float", "str"}


def setting_arguments() -> str:
    """Return the module with a typed dictionary of the settings, by their fields' names."""
    types: dict[str, str] = {}
    for group in GROUPS.values():
        types |= group.__annotations__
    return _with_fields(_SETTINGS, ((row.field, _optional(types[row.field])) for row in TABLE))


def sglang_arguments() -> str:
    """Return the module with a typed dictionary of what goes on to SGLang's engines."""
    known = {name for row in TABLE for name in row.keywords} | (OWNED.keys() - RENAMED.keys())
    return _with_fields(_SGLANG, (field for field in sglang_fields() if field[0] not in known))


def _with_fields(module: str, fields: Iterable[tuple[str, str]]) -> str:
    return module.format(fields="\n".join(f"    {name}: {kind}" for name, kind in fields))


def sglang_fields() -> Iterator[tuple[str, str]]:
    """Yield each field of `ServerArgs` with its type, as far as plain words tell it."""
    spec = importlib.util.find_spec("sglang")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "srt" / "arg_groups" / "fields"
    for path in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                yield from _fields_of(node)


def _fields_of(namespace: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for node in namespace.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
            if not name.startswith("_"):
                yield name, _plain(node.annotation)


def _plain(annotation: ast.expr) -> str:
    """Return a scalar type, perhaps optional; Any for everything else."""
    found = annotation
    if isinstance(found, ast.Subscript) and ast.unparse(found.value) in ("A", "Annotated"):
        assert isinstance(found.slice, ast.Tuple)
        found = found.slice.elts[0]
    text = ast.unparse(found)
    inner = text.removeprefix("Optional[").removesuffix("]")
    if inner not in _SCALARS:
        return "Any"
    return inner if text == inner else f"{inner} | None"


def _optional(kind: str) -> str:
    return kind if kind.endswith("| None") else f"{kind} | None"


def main() -> None:
    SETTINGS.write_text(setting_arguments(), "utf-8")
    SGLANG.write_text(sglang_arguments(), "utf-8")


if __name__ == "__main__":
    main()
