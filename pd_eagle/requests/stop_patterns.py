"""Regular expressions of `stop_regex`, and a bound on what a search with them costs.

An engine searches with Python's `re`, in its scheduler, at every token: a few bytes can make that
take minutes.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser as sre_parse  # type: ignore[attr-defined]
from typing import TYPE_CHECKING, Any

from pd_eagle.requests.bounds import fits_bytes

if TYPE_CHECKING:
    from pd_eagle.messages import EngineInfo

#: Ways to match times characters looked at, over all patterns of a request: searched at every
#: token, from every character of a tail about as long.
MAX_SEARCH_COST = 2000
MAX_STOP_PATTERNS = 32
_MAX_MATCH_CHARS = 256


@dataclass(frozen=True, slots=True)
class StopPatterns:
    """Regular expressions whose search is bounded; one, or a list.

    Python's `re` tries every way to match from every character. A pattern without `*` and `+`
    looks at a bounded number of characters in a bounded number of ways: their product is bounded.
    """

    def expected(self, value: Any, limits: EngineInfo) -> str | None:
        patterns = [value] if isinstance(value, str) else value
        if not isinstance(patterns, list) or len(patterns) > MAX_STOP_PATTERNS:
            return f"a regular expression, or a list of at most {MAX_STOP_PATTERNS}"
        cost = 0
        for pattern in patterns:
            if not isinstance(pattern, str) or not pattern or not fits_bytes(pattern, 256):
                return "regular expressions of 1 to 256 bytes"
            found = _search_cost(pattern)
            if isinstance(found, str):
                return found
            cost += found
        if cost > MAX_SEARCH_COST:
            return (
                f"regular expressions whose ways to match times their longest match are at most "
                f"{MAX_SEARCH_COST} together (found {shown_cost(cost)})"
            )
        return None


def shown_cost(cost: int) -> str:
    return str(cost) if cost < 10**9 else "over a billion"


@functools.lru_cache(maxsize=64)
def _search_cost(pattern: str) -> int | str:
    """Return ways to match times the longest match in characters, or what is wanted instead."""
    try:
        re.compile(pattern)
        ways, chars = _ways(sre_parse.parse(pattern))
    except _UnboundedError as error:
        return str(error)
    except (re.error, RecursionError, OverflowError) as error:
        return f"a regular expression of Python ({error})"
    if chars > _MAX_MATCH_CHARS:
        return f"a regular expression that matches at most {_MAX_MATCH_CHARS} characters"
    return ways * max(chars, 1)


class _UnboundedError(Exception):
    """A pattern whose search has no bound."""


def _ways(parsed: Any) -> tuple[int, int]:
    """Return the most ways in which `parsed` can match from one place, and the most characters."""
    ways, chars = 1, 0
    for kind, value in parsed:
        inner_ways, inner_chars = _ways_of(kind, value)
        ways *= inner_ways
        chars += inner_chars
        if ways > 10**9:
            raise _UnboundedError("a regular expression with fewer ways to match")
    return ways, chars


def _ways_of(kind: Any, value: Any) -> tuple[int, int]:
    if kind in (sre.LITERAL, sre.NOT_LITERAL, sre.IN, sre.ANY):
        return 1, 1
    if kind is sre.AT:
        return 1, 0
    if kind is sre.SUBPATTERN:
        return _ways(value[3])
    if kind is sre.BRANCH:
        each = [_ways(branch) for branch in value[1]]
        return sum(ways for ways, _ in each), max(chars for _, chars in each)
    if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT):
        low, high, inner = value
        if high is sre.MAXREPEAT or high > _MAX_MATCH_CHARS:
            raise _UnboundedError(
                "regular expressions with bounded repeats, such as {1,20} in place of * and +"
            )
        ways, chars = _ways(inner)
        return sum(ways**count for count in range(low, high + 1)), chars * high
    raise _UnboundedError("regular expressions without lookaround and without references")
