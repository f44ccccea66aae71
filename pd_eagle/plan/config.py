"""What the user asked for, read from a passed-in mapping or from keyword arguments, and checked.

It never looks at the process's own environment: the caller passes it in. It knows nothing of GPUs,
models or SGLang. The settings themselves are declared in `setting_groups`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from pd_eagle.errors import SettingsError
from pd_eagle.plan import server_arguments, setting_checks
from pd_eagle.plan.engine_settings import EagleSettings, ModelSettings, PDSettings
from pd_eagle.plan.front_settings import (
    ApiSettings,
    FailureSettings,
    LimitSettings,
    ServerSettings,
    TracingSettings,
)
from pd_eagle.plan.setting_groups import TABLE
from pd_eagle.plan.unknown_names import is_mistaken, suggestion

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pd_eagle.plan.setting import Setting


@dataclass(frozen=True, kw_only=True, repr=False)
class Settings(
    ServerSettings,
    ApiSettings,
    ModelSettings,
    PDSettings,
    EagleSettings,
    LimitSettings,
    FailureSettings,
    TracingSettings,
):
    """Everything the user can set, checked.

    Build it with `from_env` or `from_kwargs`; the constructor itself checks nothing.
    """

    warnings: tuple[str, ...] = ()
    #: The variables of EAGLE's tree that were set, as far as they were.
    tree_by_hand: tuple[str, ...] = ()

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Read the settings from variables. An empty variable counts as unset, except a secret: an
        empty key is an error, lest the service be open.

        Raises SettingsError with a line for each bad value and each unknown name of ours.
        """
        by_variable = {name: row for row in TABLE for name in row.names}
        variables = [row.variable for row in TABLE]
        given = {
            name: value
            for name, value in environ.items()
            if name in by_variable and (value != "" or by_variable[name].secret)
        }
        unknown = [
            suggestion(name, variables)
            for name, value in sorted(environ.items())
            if name not in by_variable and is_mistaken(name, value, by_variable)
        ]
        return cls(**_checked(given, by_variable, unknown))

    @classmethod
    def from_kwargs(cls, **kwargs: object) -> Self:
        """Take the settings from keyword arguments: the fields' or the variables' names.

        Arguments of sglang.Engine go into `engine_args`, or set what they are called here. Values
        may be typed or text; None is unset. Raises SettingsError as `from_env` does.
        """
        by_name = {name: row for row in TABLE for name in row.keywords}
        problems: list[str] = []
        found = server_arguments.sort_out(kwargs, by_name, problems)
        given = {name: value for name, value in found.items() if value is not None}
        return cls(**_checked(given, by_name, problems))

    def __repr__(self) -> str:
        shown = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        shown |= {row.field: "***" for row in TABLE if row.secret and shown[row.field]}
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @property
    def traces_url(self) -> str | None:
        """The URL that gets spans; None: tracing is off."""
        if self.otlp_traces_endpoint or not self.otlp_endpoint:
            return self.otlp_traces_endpoint
        return f"{self.otlp_endpoint.rstrip('/')}/v1/traces"

    @property
    def split_by_hand(self) -> tuple[str, ...]:
        """The variables that set the split of the GPUs by hand, as far as they are set."""
        given = (name for name in setting_checks.SPLIT if getattr(self, name) is not None)
        return tuple(name.upper() for name in given)


def keywords(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings among variables as keyword arguments; an empty variable is unset."""
    return {row.field: environ[name] for row in TABLE for name in row.names if environ.get(name)}


def _checked(
    given: Mapping[str, object], known: Mapping[str, Setting], problems: list[str]
) -> dict[str, Any]:
    """Return the constructor's arguments, or raise with everything that is wrong."""
    values, bad = _read(given, known, problems)
    warnings = tuple(setting_checks.warnings(values))
    tree_by_hand = tuple(field.upper() for field in setting_checks.TREE if field in values)
    problems.extend(setting_checks.problems_between(values, bad))
    if problems:
        raise SettingsError("\n".join(problems))
    return values | {"warnings": warnings, "tree_by_hand": tree_by_hand}


def _read(
    given: Mapping[str, object], known: Mapping[str, Setting], problems: list[str]
) -> tuple[dict[str, Any], set[str]]:
    """Return what was read, by field, and the fields with a wrong value; add to `problems`."""
    values: dict[str, Any] = {}
    bad: set[str] = set()
    shown: dict[str, str] = {}
    for name, value in given.items():
        row = known[name]
        try:
            found = row.type.read(value)
        except (TypeError, ValueError):
            problems.append(row.problem(name, value))
            bad.add(row.field)
            continue
        if values.setdefault(row.field, found) != found:
            both = f"{shown[row.field]} and {row.shown(name, value)}"
            problems.append(f"{both}: wanted one of the two, or the same value in both")
            bad.add(row.field)
        shown.setdefault(row.field, row.shown(name, value))
    return values, bad
