"""Values of the command line's options: each is read here, or refused with what is wanted."""

from __future__ import annotations

import argparse
import math
import re

_UNITS_S = {"s": 1, "m": 60, "h": 3600}


def tokens(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: wanted a whole number of tokens ≥ 1")
    return int(text)


def seconds(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted a number of seconds > 0, e.g. 0.02")
    return value


def span(text: str) -> float:
    """Return a time in seconds."""
    unit = _UNITS_S.get(text[-1:])
    value = _number(text[:-1] if unit else text) * (unit or 1)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted a time > 0, e.g. 15m, 90s or 1h")
    return value


def share(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted a share > 0 and at most 1, e.g. 0.95")
    return value


def pattern(text: str) -> str:
    """Return a regular expression as it is."""
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(
            f"{text!r}: {error}: wanted a regular expression"
        ) from error
    return text


def level(text: str) -> dict[str, float]:
    """Return the parts of a level by name; which of them it names is the user's choice."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name not in LEVEL or name in found:
            raise argparse.ArgumentTypeError(
                f"{text!r}: {part!r}: wanted some of {', '.join(LEVEL)}, each once,"
                " e.g. ttft=1.0,gap-mean=0.02,gap-max=0.05"
            )
        try:
            found[name] = LEVEL[name](value)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {name}: {error}") from error
    return found


#: What a level may name, and how it is read.
LEVEL = {"ttft": seconds, "gap-mean": seconds, "gap-max": seconds, "quantile": share}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
