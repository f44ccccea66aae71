"""JSON schemas and structural tags that an engine compiles, and their bounds.

xgrammar can be made to compile for minutes by a few kilobytes. It knows no field's name.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pd_eagle.requests.bounds import fits_bytes, measure
from pd_eagle.requests.grammars import MAX_REPEAT, grammar_expected, pattern_expected

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pd_eagle.messages import EngineInfo

# Seen with xgrammar 0.2.7 and 32,000 tokens: an object of 1,000 properties compiles in 0.3 s, one
# of 4,000 in 3.5 s.
MAX_SCHEMA_BYTES = 2**18
MAX_SCHEMA_VALUES = 2**13
MAX_SCHEMA_DEPTH = 32
MAX_PROPERTIES = 1024


@dataclass(frozen=True, slots=True)
class Schema:
    """A JSON schema, as JSON or as its text."""

    def expected(self, value: Any, limits: EngineInfo) -> str | None:
        if isinstance(value, str):
            return _schema_text_expected(value)
        return schema_expected(value)


@functools.lru_cache(maxsize=16)
def _schema_text_expected(text: str) -> str | None:
    if not text:  # to SGLang as good as unset
        return None
    if not fits_bytes(text, MAX_SCHEMA_BYTES):
        return f"a JSON schema of at most {MAX_SCHEMA_BYTES} bytes"
    try:
        return schema_expected(json.loads(text))
    except (ValueError, RecursionError):
        return "a JSON schema"


def schema_expected(schema: Any) -> str | None:
    """Return what kind of schema is accepted in place of `schema`; None if it is."""
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
        if found := _keywords_expected(node):
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


def _keywords_expected(node: dict[str, Any]) -> str | None:
    for name in _COUNTS:
        count = node.get(name)
        if isinstance(count, int | float) and not 0 <= count <= MAX_REPEAT:
            return f"a JSON schema with {name} from 0 to {MAX_REPEAT}"
    pattern = node.get("pattern")
    if isinstance(pattern, str) and (found := pattern_expected(pattern)):
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

    def expected(self, value: Any, limits: EngineInfo) -> str | None:
        return _structural_tag_expected(value) if isinstance(value, str) else "text of JSON"


@functools.lru_cache(maxsize=16)
def _structural_tag_expected(text: str) -> str | None:
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
            if isinstance(node.get(name), dict) and (found := schema_expected(node[name])):
                return f"structural tags with {found}"
        if isinstance(node.get("pattern"), str) and (found := pattern_expected(node["pattern"])):
            return f"structural tags whose pattern is {found}"
        if isinstance(node.get("grammar"), str) and (found := grammar_expected(node["grammar"])):
            return f"structural tags with {found}"
    return None
