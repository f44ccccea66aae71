"""The types of a request's fields: which values each accepts, and how it words what it expects.

A bound knows a value and the smallest engine's limits; it knows no field's name and no request.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pd_eagle.messages import EngineInfo

#: What a bound may depend on.
Limit = int | Callable[["EngineInfo"], int]

INT64_MAX = 2**63 - 1
INT32_MAX = 2**31 - 1
_SHOWN_CHARS = 60
#: Longer than any number of 64 bits is written.
_LONGEST_DIGITS = 32


class Bound(Protocol):
    """What one field of a request may be."""

    def expected(self, value: Any, limits: EngineInfo) -> str | None:
        """Return what is accepted in place of `value`, None if `value` is."""


def vocabulary(limits: EngineInfo) -> int:
    return limits.vocab_size - 1


def context(limits: EngineInfo) -> int:
    return limits.context_length


def shown(value: Any) -> str:
    """Return `value` as an error can show it: short, however large it is."""
    match value:
        case str() | bytes():
            cut = value[:_SHOWN_CHARS]
            more = "…" if len(value) > len(cut) else ""
            return f"{cut!r}{more}"
        case bool() | None | float():
            return repr(value)
        case int():
            bits = value.bit_length()
            return str(value) if bits <= 128 else f"a number of {bits} bits"
        case list() | tuple() | set() | frozenset() | dict():
            text = repr(value) if _is_small(value) else ""
            return (
                text
                if 0 < len(text) <= _SHOWN_CHARS
                else f"a {type(value).__name__} of {len(value)}"
            )
    return f"a {type(value).__name__}"


def _is_small(value: Any) -> bool:
    inner = list(value.values()) + list(value) if isinstance(value, dict) else list(value)[:9]
    return len(inner) <= 8 and all(
        isinstance(i, (bool, float, type(None)))
        or (isinstance(i, int) and i.bit_length() <= 128)
        or (isinstance(i, str) and len(i) <= _SHOWN_CHARS)
        for i in inner
    )


def as_number(value: Any) -> Any:
    """Return the number that pydantic would make of `value`, else `value` itself.

    A string of digits longer than any number of 64 bits stays a string.
    """
    if isinstance(value, str) and len(value) <= _LONGEST_DIGITS:
        for read in (int, float):
            try:
                return read(value)
            except ValueError:
                continue
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    return value


def _resolve(limit: Limit, limits: EngineInfo) -> int:
    return limit if isinstance(limit, int) else limit(limits)


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number from `low` to `high`, both taken; or one of `other`."""

    low: Limit
    high: Limit
    other: tuple[int, ...] = ()

    def expected(self, value: Any, limits: EngineInfo) -> str | None:
        low, high = _resolve(self.low, limits), _resolve(self.high, limits)
        if type(value) is int and (low <= value <= high or value in self.other):
            return None
        either = "".join(f"{number} or " for number in self.other)
        return f"{either}a whole number from {low} to {high}"


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number from `low` to `high`, both taken unless `above` excludes the lower one."""

    low: float
    high: float
    above: bool = False

    def expected(self, value: Any, limits: EngineInfo) -> str | None:
        if isinstance(value, int | float) and not isinstance(value, bool):
            fits = self.low < value if self.above else self.low <= value
            if fits and value <= self.high:
                return None
        start = f"above {self.low:g} and" if self.above else f"from {self.low:g} and"
        return f"a number {start} at most {self.high:g}"


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""

    def expected(self, value: Any, limits: EngineInfo) -> str | None:
        return None if isinstance(value, bool) else "true or false"


@dataclass(frozen=True, slots=True)
class Text:
    """A text of at most so many bytes in UTF-8."""

    max_bytes: int

    def expected(self, value: Any, limits: EngineInfo) -> str | None:
        if isinstance(value, str) and fits_bytes(value, self.max_bytes):
            return None
        return f"a text of at most {self.max_bytes} bytes of UTF-8"


def fits_bytes(text: str, max_bytes: int) -> bool:
    """Return whether `text` can be written in UTF-8, in so many bytes."""
    if len(text) > max_bytes:
        return False
    try:
        return len(text.encode()) <= max_bytes
    except UnicodeEncodeError:  # half of a surrogate pair: no socket carries it
        return False


@dataclass(frozen=True, slots=True)
class Each:
    """One value that `one` takes, or a list of at most `count` of them."""

    one: Bound
    count: int

    def expected(self, value: Any, limits: EngineInfo) -> str | None:
        many = f", or a list of at most {self.count}"
        if not isinstance(value, list | tuple):
            found = self.one.expected(value, limits)
            return found and found + many
        if len(value) > self.count:
            return f"at most {self.count} of them"
        for item in value:
            if found := self.one.expected(item, limits):
                return f"{found}{many} (found {shown(item)})"
        return None


@dataclass(frozen=True, slots=True)
class TokenIds:
    """At most `count` tokens of the vocabulary."""

    count: Limit

    def expected(self, value: Any, limits: EngineInfo) -> str | None:
        count = _resolve(self.count, limits)
        form = f"a list of at most {count} token ids from 0 to {vocabulary(limits)}"
        if not isinstance(value, list | tuple | set | frozenset) or len(value) > count:
            return form
        wrong = (i for i in value if type(i) is not int or not 0 <= i < limits.vocab_size)
        for item in wrong:
            return f"{form} (found {shown(item)})"
        return None


@dataclass(frozen=True, slots=True)
class TokenBias:
    """A finite number for each of at most `count` tokens; their ids may be written as text."""

    count: int
    value: Number

    def expected(self, value: Any, limits: EngineInfo) -> str | None:
        form = (
            f"an object of at most {self.count} token ids from 0 to {vocabulary(limits)}, "
            f"each with {self.value.expected(None, limits)}"
        )
        if not isinstance(value, dict) or len(value) > self.count:
            return form
        for key, bias in value.items():
            if not self._is_token(key, limits) or self.value.expected(as_number(bias), limits):
                return f"{form} (found {shown(key)}: {shown(bias)})"
        return None

    def _is_token(self, key: Any, limits: EngineInfo) -> bool:
        if isinstance(key, str):
            key = int(key) if key.isascii() and key.isdigit() and len(key) < 12 else -1
        return type(key) is int and 0 <= key < limits.vocab_size


@dataclass(frozen=True, slots=True)
class Json:
    """JSON of so many values, levels and bytes of text; integers of 64 bits."""

    max_values: int
    max_depth: int
    max_bytes: int

    def expected(self, value: Any, limits: EngineInfo) -> str | None:
        size = measure(value, self.max_values, self.max_depth, self.max_bytes)
        return size and f"JSON with {size}"


def measure(value: Any, max_values: int, max_depth: int, max_bytes: int) -> str | None:
    """Return which of the bounds `value` exceeds, in words; None if it keeps all of them."""
    waiting = [(value, 1)]
    values = size = 0
    while waiting:
        item, depth = waiting.pop()
        values += 1
        match item:
            case bool() | None | float():
                continue
            case str():
                size += len(item)
                if not fits_bytes(item, max_bytes):
                    return f"at most {max_bytes} bytes of text in UTF-8"
            case int():
                if not -INT64_MAX - 1 <= item <= INT64_MAX:
                    return "integers of 64 bits"
            case dict() | list() | tuple():
                if depth > max_depth:
                    return f"at most {max_depth} levels"
                if len(item) > max_values:
                    return f"at most {max_values} values"
                if isinstance(item, dict):
                    if not all(isinstance(key, str) for key in item):
                        return "text for every key"
                    waiting += [(key, depth + 1) for key in item]
                    values -= len(item)
                    item = item.values()
                waiting += [(inner, depth + 1) for inner in item]
            case _:
                return "objects, lists, text, numbers, true, false and null"
        if values > max_values:
            return f"at most {max_values} values"
        if size > max_bytes:
            return f"at most {max_bytes} bytes of text in UTF-8"
    return None


@dataclass(frozen=True, slots=True)
class Unset:
    """Nothing: `why` it cannot be asked for."""

    why: str = "it is not supported here"

    def expected(self, value: Any, limits: EngineInfo) -> str | None:
        return f"unset, {self.why}" if value else None


@dataclass(frozen=True, slots=True)
class Unused:
    """Anything: neither the front nor an engine acts on it; `why` is for the reader."""

    why: str

    def expected(self, value: Any, limits: EngineInfo) -> str | None:
        return None
