"""Sorts keyword arguments meant for `sglang.Engine` into settings and arguments of the engines.

It knows the names of SGLang's `ServerArgs`, not what they mean: the engines check their values.
"""

from __future__ import annotations

import difflib
import json
from typing import TYPE_CHECKING, Any

from pd_eagle.plan.owned_arguments import OWNED, RENAMED, SGLANG_DEFAULTS
from pd_eagle.plan.sglang_arguments import SGLangArguments

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_FOR_ENGINES = frozenset(SGLangArguments.__annotations__)


def sort_out(
    given: Mapping[str, object], settings: Collection[str], problems: list[str]
) -> dict[str, object]:
    """Return `given` as keyword arguments of settings alone, whose names are `settings`.

    What SGLang's engines take goes into `engine_args`. Adds a line to `problems` for each name that
    is neither, that the plan owns, or that is given twice.
    """
    values = {name: value for name, value in given.items() if name in settings}
    extra: dict[str, Any] = {}
    for name in given.keys() - values.keys():
        value = given[name]
        if name in RENAMED:
            _put(values, RENAMED[name], value, name, problems)
        elif name in OWNED:
            if name not in SGLANG_DEFAULTS or value != SGLANG_DEFAULTS[name]:
                problems.append(f"{name}={value!r:.80}: wanted unset: {OWNED[name]}")
        elif name not in _FOR_ENGINES:
            problems.append(_unknown(name, settings))
        elif _crosses(value):
            extra[name] = value
        else:
            problems.append(
                f"{name}={value!r:.80}: wanted JSON's types: engines are other processes"
            )
    return values | {"engine_args": _merged(values.get("engine_args"), extra, problems)}


def _put(
    values: dict[str, object], field: str, value: object, name: str, problems: list[str]
) -> None:
    if values.setdefault(field, value) != value:
        problems.append(f"{name}={value!r} and {field}={values[field]!r}: wanted one of the two")


def _merged(given: Any, extra: dict[str, Any], problems: list[str]) -> object:
    """Return `extra` over the user's own `engine_args`, which may be text."""
    if not extra or given is None:
        return extra or given
    try:
        own = dict(json.loads(given) if isinstance(given, str) else given)
    except (TypeError, ValueError):
        return given  # the setting's own type says what is wrong
    for name in own.keys() & extra.keys():
        if own[name] != extra[name]:
            both = f"{name}={extra[name]!r} and engine_args: {name}={own[name]!r}"
            problems.append(f"{both}: wanted one of the two")
    return own | extra


def _crosses(value: object) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _unknown(name: str, settings: Collection[str]) -> str:
    known = {*settings, *_FOR_ENGINES, *RENAMED}
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else "neither a setting nor in SGLang's ServerArgs"
    return f"{name}: {hint}"
