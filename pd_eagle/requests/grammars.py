"""Regular expressions and EBNF grammars that an engine compiles, and their bounds.

xgrammar can be made to compile for minutes by a few bytes. It knows no field's name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pd_eagle.requests.bounds import fits_bytes

if TYPE_CHECKING:
    from pd_eagle.messages import EngineInfo

#: Of `minLength`, `maxItems` and the like, and of {n,m} in a pattern or grammar.
MAX_REPEAT = 2**17
MAX_PATTERN_BYTES = 2**12
MAX_GRAMMAR_BYTES = 2**14
_MAX_REPEATS = 128
# Seen with xgrammar 0.2.7: ten optional letters in a row compile in 0.15 s, forty in 4.7 s.
_MAX_OPTIONAL_RUN = 16
_MAX_ALTERNATIVES = 2**11
_MAX_GROUP_DEPTH = 32


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular expression that the output must match."""

    def expected(self, value: Any, limits: EngineInfo) -> str | None:
        return pattern_expected(value) if isinstance(value, str) else "a regular expression"


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar in EBNF that the output must match."""

    def expected(self, value: Any, limits: EngineInfo) -> str | None:
        return grammar_expected(value) if isinstance(value, str) else "a grammar in EBNF"


_PATTERN_TOKENS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{\d*,?\d*\}|.", re.DOTALL)
_GRAMMAR_TOKENS = re.compile(
    r'"(?:\\.|[^"\\\n])*"|\[(?:\\.|[^\]\\])*\]|\{\s*\d*\s*,?\s*\d*\s*\}|#[^\n]*|::=|[\w.-]+|.',
    re.DOTALL,
)


def pattern_expected(pattern: str) -> str | None:
    """Return what kind of pattern is accepted in place of `pattern`; None if it is."""
    if not fits_bytes(pattern, MAX_PATTERN_BYTES):
        return f"a regular expression of at most {MAX_PATTERN_BYTES} bytes"
    found = _shape_expected(_PATTERN_TOKENS.findall(pattern))
    return found and f"a regular expression with {found}"


def grammar_expected(grammar: str) -> str | None:
    """Return what kind of grammar is accepted in place of `grammar`; None if it is."""
    if not fits_bytes(grammar, MAX_GRAMMAR_BYTES):
        return f"a grammar of at most {MAX_GRAMMAR_BYTES} bytes"
    tokens = [t for t in _GRAMMAR_TOKENS.findall(grammar) if not t.isspace() and t[0] != "#"]
    found = _shape_expected(tokens)
    return found and f"a grammar with {found}"


def _shape_expected(tokens: list[str]) -> str | None:
    """Return which bound on repeats, alternatives or groups a program's `tokens` exceed."""
    repeats = alternatives = run = 0
    groups: list[bool] = []  # of each open group, whether it holds what is not optional
    mandatory = False
    for token, after in zip(tokens, [*tokens, ""][1:], strict=True):
        repeated = _is_repeat(after)
        if token == "(":
            groups.append(mandatory)
            mandatory = False
            if len(groups) > _MAX_GROUP_DEPTH:
                return f"groups at most {_MAX_GROUP_DEPTH} deep"
        elif token == ")":
            if repeated and not mandatory:
                run += min(_largest(after), _MAX_OPTIONAL_RUN)
            mandatory = (groups.pop() if groups else False) or (mandatory and not repeated)
        elif token == "|":
            alternatives += 1
        elif token == "::=":
            run = 0
        elif _is_repeat(token):
            repeats += 1
            if _largest(token) > MAX_REPEAT:
                return f"repeats of at most {MAX_REPEAT}"
        elif repeated:
            run += 1
        else:
            run, mandatory = 0, True
        if run > _MAX_OPTIONAL_RUN:
            return f"at most {_MAX_OPTIONAL_RUN} repeats in a row"
    if repeats > _MAX_REPEATS or alternatives > _MAX_ALTERNATIVES:
        return f"at most {_MAX_REPEATS} repeats and {_MAX_ALTERNATIVES} alternatives"
    return None


def _is_repeat(token: str) -> bool:
    return token in ("*", "+", "?") or (len(token) > 2 and token[0] == "{")


def _largest(repeat: str) -> int:
    numbers = re.findall(r"\d+", repeat)
    return max((int(n) if len(n) < 10 else 2**31 for n in numbers), default=1)
