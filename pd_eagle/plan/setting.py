"""One setting: its names, its default, the values it takes and what it is for.

It knows no setting: `setting_groups` lists them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pd_eagle.plan.value_types import ValueType

_PREFIX = "PD_"


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table. `alias` is the variable's old name, which is still read."""

    group: str
    field: str
    variable: str
    alias: str | None
    default: Any
    type: ValueType
    doc: str
    shown_default: str
    secret: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The variables that set it."""
        return (self.variable,) if self.alias is None else (self.variable, self.alias)

    @property
    def keywords(self) -> tuple[str, ...]:
        """The keyword arguments that set it."""
        return (self.field, *(name.lower() for name in self.names))

    @property
    def alias_note(self) -> str:
        """What `--help` and the README add for an alias."""
        return "" if self.alias is None else f" Alias: {self.alias}."

    def shown(self, name: str, value: object) -> str:
        """Return `value`, given as `name`, as it may be shown to the user."""
        return f"{name}='***'" if self.secret else f"{name}={value!r}"

    def problem(self, name: str, value: object) -> str:
        """Return the line that tells the user what is wrong with `value`, given as `name`."""
        return f"{self.shown(name, value)}: wanted {self.type.wanted}"


def setting(
    type_: ValueType,
    doc: str,
    default: Any = None,
    *,
    variable: str | None = None,
    prefixed: bool = False,
    shown: str | None = None,
    secret: bool = False,
) -> Any:
    """Return the dataclass field of a setting, whose variable is called as the field is.

    `prefixed` is for a name that any other program may use: the variable is PD_<NAME>, and the bare
    name is its alias.
    """
    row = {
        "type": type_,
        "doc": doc,
        "variable": variable,
        "prefixed": prefixed,
        "shown": shown,
        "secret": secret,
    }
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=row)
    return dataclasses.field(default=default, metadata=row)


def rows(groups: Mapping[str, type]) -> Iterator[Setting]:
    """Yield the settings of `groups`, dataclasses by their titles."""
    for title, group in groups.items():
        for field in dataclasses.fields(group):
            yield _row(title, field)


def _row(title: str, field: dataclasses.Field[Any]) -> Setting:
    given = field.metadata
    default = {} if field.default is dataclasses.MISSING else field.default
    name = field.name.upper()
    return Setting(
        group=title,
        field=field.name,
        variable=f"{_PREFIX}{name}" if given["prefixed"] else given["variable"] or name,
        alias=name if given["prefixed"] else None,
        default=default,
        type=given["type"],
        doc=given["doc"],
        shown_default=given["shown"] or _shown(default),
        secret=given["secret"],
    )


def _shown(default: object) -> str:
    if default is None:
        return "unset"
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)
