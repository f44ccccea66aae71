"""The types of a setting's value: how each is parsed from text or checked as it is.

It knows no setting's name. A type raises ValueError or TypeError for a bad value; the caller makes
the message to the user from `wanted`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_TRUE = frozenset({"true", "1", "yes", "on"})
_FALSE = frozenset({"false", "0", "no", "off"})
_DEVICE_NAME = re.compile(r"[A-Za-z0-9_.:-]+")


@dataclass(frozen=True, slots=True)
class ValueType:
    """What a value must look like, in words and as a function."""

    wanted: str
    read: Callable[[object], Any]


def _text(value: object) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(value)
    text = os.fspath(value)
    if not isinstance(text, str):
        raise TypeError(text)
    text = text.strip()  # a secret read from a file ends in a newline
    if not text or not text.isprintable():
        raise ValueError(text)
    return text


def _keys(value: object) -> str:
    keys = [key.strip() for key in _text(value).split(",")]
    if not all(keys) or any(len(key.split()) != 1 for key in keys):
        raise ValueError(keys)
    return ",".join(keys)


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = _text(value).lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError(word)


def _object(value: object) -> dict[str, Any]:
    found = json.loads(_text(value)) if isinstance(value, str) else value
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise TypeError(found)
    return dict(found)


def _interfaces(value: object) -> str:
    text = _text(value)
    if text.startswith("{"):
        _object(text)
    elif not text.endswith(".json"):
        names = [name.strip() for name in text.split(",")]
        if not all(_DEVICE_NAME.fullmatch(name) for name in names):
            raise ValueError(text)
    return text


def _url(value: object) -> str:
    text = _text(value)
    if "://" not in text:  # as OpenTelemetry's own exporters take it
        text = f"http://{text}"
    if not re.match(r"https?://[^\s/:]", text):
        raise ValueError(text)
    return text


def _origins(value: object) -> str:
    origins = [origin.strip().rstrip("/") for origin in _text(value).split(",")]
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s/*]+", origin):
            raise ValueError(origin)
    return ",".join(origins)


TEXT = ValueType("some text", _text)
ORIGINS = ValueType("origins such as https://host:port with commas between, or *", _origins)
KEYS = ValueType("one key or several with commas between, none empty or with a blank in it", _keys)
PATH = ValueType("a path or a Hugging Face name", _text)
URL = ValueType("an http:// or https:// URL, or host:port", _url)
FILE = ValueType("the path of a file", _text)
FLAG = ValueType("true or false", _flag)
OBJECT = ValueType("a JSON object", _object)
# SGLang 0.5.23, srt/arg_groups/fields/disagg.py, disaggregation_ib_device.
INTERFACES = ValueType(
    "names with commas (mlx5_0,mlx5_1), a JSON object from GPU to names, or a .json file of one",
    _interfaces,
)


def whole(low: int, high: int | None = None) -> ValueType:
    """Return the type of an integer from `low` to `high`, both included."""

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise TypeError(value)
        number = int(value)
        if number < low or (high is not None and number > high):
            raise ValueError(number)
        return number

    bounds = f"≥ {low}" if high is None else f"from {low} to {high}"
    return ValueType(f"a whole number {bounds}", read)


def seconds(*, zero: bool) -> ValueType:
    """Return the type of a duration in seconds; `zero` says whether 0 is allowed."""

    def read(value: object) -> float:
        number = _real(value)
        if number < 0 or (number == 0 and not zero):
            raise ValueError(number)
        return number

    return ValueType(f"a number of seconds {'≥' if zero else '>'} 0", read)


def _real(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError(value)
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(number)
    return number


def _fraction(value: object) -> float:
    number = _real(value)
    if not 0 < number < 1:
        raise ValueError(number)
    return number


FRACTION = ValueType("a number between 0 and 1, neither of them", _fraction)


def one_of(*words: str) -> ValueType:
    """Return the type of one of `words`, ignoring case."""

    def read(value: object) -> str:
        word = _text(value)
        for known in words:
            if word.lower() == known.lower():
                return known
        raise ValueError(word)

    return ValueType(f"one of {', '.join(words)}", read)
