"""Replaces named parts of foreign modules and verifies that; does not know which ones.

SGLang's own hooks (`srt/plugins/hook_registry.py`, 0.5.23) only log a failure, and a hook on a
name whose value is None rebinds every None in the process. An override here raises instead.
"""

from __future__ import annotations

import inspect
import pkgutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pd_eagle.errors import StartFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import ModuleType


@dataclass(frozen=True, slots=True)
class Override:
    """One foreign name and what stands there instead.

    `target` is "module:attribute" or "module:Class.attribute"; `shape` is what `shape_of` said of
    it in the release it was written for; `new` makes the replacement from the original.
    """

    target: str
    shape: str
    because: str
    new: Callable[[Any], Any]


def shape_of(value: object) -> str:
    """Return the parameter names of a callable, else the repr of the value."""
    if not callable(value):
        return repr(value)
    return ", ".join(str(p).split(":")[0].split("=")[0].strip() for p in _parameters(value))


def shape_errors(overrides: Iterable[Override]) -> list[str]:
    """Return one error per target that is gone or has changed since its override was written."""
    return [error for override in overrides if (error := _shape_error(override))]


def apply(overrides: Iterable[Override]) -> None:
    """Put every replacement in place, also where its original was already imported by name.

    Raises `StartFailed` when a target changed upstream or an original is still reachable.
    """
    overrides = list(overrides)
    if errors := shape_errors(overrides):
        raise StartFailed("SGLang or torch is not what is overridden here:\n" + "\n".join(errors))
    for override in overrides:
        _put(override)


def _parameters(value: Any) -> Iterable[inspect.Parameter]:
    return inspect.signature(value).parameters.values()


def _shape_error(override: Override) -> str:
    try:
        found = shape_of(pkgutil.resolve_name(override.target))
    except (ImportError, AttributeError) as error:
        return f"{override.target}: {error}"
    return (
        "" if found == override.shape else f"{override.target}: {found!r}, not {override.shape!r}"
    )


def _owner(target: str) -> tuple[Any, str]:
    module, _, path = target.partition(":")
    parents, _, name = path.rpartition(".")
    return pkgutil.resolve_name(f"{module}:{parents}"), name


def _put(override: Override) -> None:
    owner, name = _owner(override.target)
    original = getattr(owner, name)
    replacement = override.new(original)
    setattr(owner, name, replacement)
    if inspect.isfunction(original):
        for module, alias in _bindings(original):
            setattr(module, alias, replacement)
    if pkgutil.resolve_name(override.target) is not replacement:
        raise StartFailed(f"the override of {override.target} did not take: {override.because}")


def _bindings(function: object) -> Iterator[tuple[ModuleType, str]]:
    """Where `from module import function` left the function itself."""
    for module in [m for n, m in sys.modules.items() if n.startswith("sglang.")]:
        for alias in [a for a, value in vars(module).items() if value is function]:
            yield module, alias
