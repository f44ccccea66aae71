"""What an engine runs as a program: JSON schemas, regular expressions, grammars, and their bounds.

An engine compiles them (xgrammar) or searches with them at every token (Python's `re`, in the
scheduler, for `stop_regex`), and both can be made to take minutes by a few bytes. It knows no
field's name.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser as sre_parse  # type: ignore[attr-defined]
from typing import TYPE_CHECKING, Any

from pd_eagle.requests.bounds import fits_bytes, measure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pd_eagle.messages import EngineInfo

# Seen with xgrammar 0.2.7 and 32,000 tokens: an object of 1,000 properties compiles in 0.3 s, one
# of 4,000 in 3.5 s; ten optional letters in a row take 0.15 s, forty 4.7 s.
MAX_SCHEMA_BYTES = 2**18
MAX_SCHEMA_VALUES = 2**13
MAX_SCHEMA_DEPTH = 32
MAX_PROPERTIES = 1024
#: Of `minLength`, `maxItems` and the like, and of {n,m} in a pattern or grammar.
MAX_REPEAT = 2**17
MAX_PATTERN_BYTES = 2**12
MAX_GRAMMAR_BYTES = 2**14
_MAX_REPEATS = 128
_MAX_OPTIONAL_RUN = 16
_MAX_ALTERNATIVES = 2**11
_MAX_GROUP_DEPTH = 32

#: Ways to match times characters looked at, over all patterns of a request: searched at every
#: token, from every character of a tail about as long.
MAX_SEARCH_COST = 2000
MAX_STOP_PATTERNS = 32
_MAX_MATCH_CHARS = 256


# --- JSON schemas


@dataclass(frozen=True, slots=True)
class Schema:
    """A JSON schema, as JSON or as its text."""

    def wanted(self, value: Any, limits: EngineInfo) -> str | None:
        if isinstance(value, str):
            return _schema_text_wanted(value)
        return schema_wanted(value)


@functools.lru_cache(maxsize=16)
def _schema_text_wanted(text: str) -> str | None:
    if not text:  # to SGLang as good as unset
        return None
    if not fits_bytes(text, MAX_SCHEMA_BYTES):
        return f"a JSON schema of at most {MAX_SCHEMA_BYTES} bytes"
    try:
        return schema_wanted(json.loads(text))
    except (ValueError, RecursionError):
        return "a JSON schema"


def schema_wanted(schema: Any) -> str | None:
    """Return what kind of schema would be let through in place of `schema`; None if it is."""
    size = measure(schema, MAX_SCHEMA_VALUES, MAX_SCHEMA_DEPTH, MAX_SCHEMA_BYTES)
    if size:
        return f"a JSON schema with {size}"
    if not isinstance(schema, dict | bool):
        return "a JSON schema, which is an object"
    properties = 0
    for node in _objects(schema):
        inner = node.get("properties")
        properties += len(inner) if isinstance(inner, dict) else 0
        if properties > MAX_PROPERTIES:
            return f"a JSON schema with at most {MAX_PROPERTIES} properties"
        if found := _keywords_wanted(node):
            return found
        if _refers_to_itself(node, schema):
            return f"a JSON schema whose $ref {node.get('$ref')!r:.60} leads to more than itself"
    return None


def _objects(schema: Any) -> Iterator[dict[str, Any]]:
    waiting = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node


_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")


def _keywords_wanted(node: dict[str, Any]) -> str | None:
    for name in _COUNTS:
        count = node.get(name)
        if isinstance(count, int | float) and not 0 <= count <= MAX_REPEAT:
            return f"a JSON schema with {name} from 0 to {MAX_REPEAT}"
    pattern = node.get("pattern")
    if isinstance(pattern, str) and (found := pattern_wanted(pattern)):
        return f"a JSON schema whose pattern is {found}"
    return None


#: Keywords whose schemas describe the same value as the schema that they stand in.
_SAME_VALUE = ("allOf", "anyOf", "oneOf")


def _refers_to_itself(node: dict[str, Any], root: Any) -> bool:
    """Return whether `node` is described by itself alone: a compiler would expand it for ever."""
    if not isinstance(node.get("$ref"), str):
        return False
    seen: set[int] = set()
    waiting: list[Any] = [node]
    while waiting:
        at = waiting.pop()
        if not isinstance(at, dict):
            continue
        if at is node and seen:
            return True
        if id(at) in seen:
            continue
        seen.add(id(at))
        if isinstance(at.get("$ref"), str):
            waiting.append(_target(at["$ref"], root))
        for name in _SAME_VALUE:
            if isinstance(at.get(name), list):
                waiting += at[name]
    return False


def _target(reference: str, root: Any) -> Any:
    if not reference.startswith("#"):
        return None
    at = root
    for part in reference[1:].split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(at, dict):
            at = at.get(part)
        elif isinstance(at, list) and part.isascii() and part.isdigit() and int(part) < len(at):
            at = at[int(part)]
        else:
            return None
    return at


@dataclass(frozen=True, slots=True)
class StructuralTag:
    """The text of SGLang's structural tags: JSON with schemas and grammars anywhere in it."""

    def wanted(self, value: Any, limits: EngineInfo) -> str | None:
        return _structural_tag_wanted(value) if isinstance(value, str) else "text of JSON"


@functools.lru_cache(maxsize=16)
def _structural_tag_wanted(text: str) -> str | None:
    if not text:
        return None
    if not fits_bytes(text, 2 * MAX_SCHEMA_BYTES):
        return f"structural tags of at most {2 * MAX_SCHEMA_BYTES} bytes"
    try:
        tag = json.loads(text)
    except (ValueError, RecursionError):
        return "structural tags as JSON"
    return programs_within(tag)


def programs_within(tag: Any) -> str | None:
    """Return what is wrong with a schema, pattern or grammar anywhere in `tag`; None if nothing."""
    size = measure(tag, 2 * MAX_SCHEMA_VALUES, 2 * MAX_SCHEMA_DEPTH, 2 * MAX_SCHEMA_BYTES)
    if size:
        return f"structural tags with {size}"
    for node in _objects(tag):
        for name in ("schema", "json_schema"):
            if isinstance(node.get(name), dict) and (found := schema_wanted(node[name])):
                return f"structural tags with {found}"
        if isinstance(node.get("pattern"), str) and (found := pattern_wanted(node["pattern"])):
            return f"structural tags whose pattern is {found}"
        if isinstance(node.get("grammar"), str) and (found := grammar_wanted(node["grammar"])):
            return f"structural tags with {found}"
    return None


# --- regular expressions and grammars that are compiled


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular expression that the output must match."""

    def wanted(self, value: Any, limits: EngineInfo) -> str | None:
        return pattern_wanted(value) if isinstance(value, str) else "a regular expression"


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar in EBNF that the output must match."""

    def wanted(self, value: Any, limits: EngineInfo) -> str | None:
        return grammar_wanted(value) if isinstance(value, str) else "a grammar in EBNF"


_PATTERN_TOKENS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{\d*,?\d*\}|.", re.DOTALL)
_GRAMMAR_TOKENS = re.compile(
    r'"(?:\\.|[^"\\\n])*"|\[(?:\\.|[^\]\\])*\]|\{\s*\d*\s*,?\s*\d*\s*\}|#[^\n]*|::=|[\w.-]+|.',
    re.DOTALL,
)


def pattern_wanted(pattern: str) -> str | None:
    """Return what kind of pattern would be let through in place of `pattern`; None if it is."""
    if not fits_bytes(pattern, MAX_PATTERN_BYTES):
        return f"a regular expression of at most {MAX_PATTERN_BYTES} bytes"
    found = _shape_wanted(_PATTERN_TOKENS.findall(pattern))
    return found and f"a regular expression with {found}"


def grammar_wanted(grammar: str) -> str | None:
    """Return what kind of grammar would be let through in place of `grammar`; None if it is."""
    if not fits_bytes(grammar, MAX_GRAMMAR_BYTES):
        return f"a grammar of at most {MAX_GRAMMAR_BYTES} bytes"
    tokens = [t for t in _GRAMMAR_TOKENS.findall(grammar) if not t.isspace() and t[0] != "#"]
    found = _shape_wanted(tokens)
    return found and f"a grammar with {found}"


def _shape_wanted(tokens: list[str]) -> str | None:
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


# --- regular expressions that are searched for at every token


@dataclass(frozen=True, slots=True)
class StopPatterns:
    """Regular expressions whose search is bounded; one, or a list.

    Python's `re` tries every way to match from every character. A pattern without `*` and `+`
    looks at a bounded number of characters in a bounded number of ways: their product is bounded.
    """

    def wanted(self, value: Any, limits: EngineInfo) -> str | None:
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
