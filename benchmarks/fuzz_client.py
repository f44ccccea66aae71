"""Requests drawn from the JSON schemas of SGLang's request classes, sent in small batches at once.

Hypothesis draws them and shrinks a batch that fails: a 5xx other than overload, or no answer in
time. Does not know what serves them. The schemas are passed in, so that a client process need not
import SGLang and stays small.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st

from benchmarks.fuzz_routes import ASKED, WORDS

if TYPE_CHECKING:
    from pathlib import Path

    from hypothesis.strategies import SearchStrategy

Json = Any
Body = dict[str, Any]

#: Larger batches exceed Hypothesis' limit of data for one example.
BATCH = 4
#: Above every request's own deadline.
ANSWER_TIMEOUT_S = 150.0
_DEPTH = 3

_EDGES: list[Json] = [
    -1, 0, 1, 2, 7, 19, 20, 21, 127, 128, 129, 255, 256, 257, 1023, 4096, 2**15, 2**16,
    2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**31) - 1, -(2**63) - 1,
    10**26, -(10**40), "12", "9" * 26, "-1", "1e400", True, 1.5, 0.0,
]  # fmt: skip
_FLOATS: list[Json] = [0.0, -0.0, 1.0, 2.0, -2.0, 1e-9, 1e-45, 0.999, 1.001, 1e9, 1e308, -1e308]
_TEXTS = [
    "", " ", "w1 w2 w3", "\x00", "\ud800", "\u202e", "ℵ" * 40, "a" * 5000, "9" * 400, "null", "[]",
    "{", "../../x", "default", "w1\n" * 200, "<|im_start|>", "</s>", "auto", "required", "none",
]  # fmt: skip
_PATTERNS = [
    "(a+)+$", "(a|a)*b", "[", "(", "a{1,99999}", "(?=a)b", r"(?P<x>a)(?P=x)", r"\d{3}", ".*",
    "((((((((((a*)*)*)*)*)*)*)*)*)*)*", "(?i)w1", "[\\s\\S]{0,500}", "a{99999999999}", "\\", "|",
]  # fmt: skip
_GRAMMAR_FIELDS = {"regex", "ebnf", "json_schema", "response_format", "structural_tag", "tools"}
_GRAMMARS = ['root ::= "w1"', "root ::= root", "root ::= [", 'root ::= "a" | root "b"', "x"]


def _nested(depth: int) -> Body:
    schema: Body = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema, "minItems": 1}
    return schema


_SCHEMAS: list[Json] = [
    {}, True, {"type": "object"}, {"$ref": "#"}, {"$ref": "#/$defs/x"}, {"$ref": "http://x/y"},
    {"$defs": {"x": {"$ref": "#/$defs/x"}}, "$ref": "#/$defs/x"}, {"type": "strange"},
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    {"type": "object", "properties": {"a": {"$ref": "#"}}}, {"enum": []}, {"enum": [1, "a", None]},
    {"type": "string", "pattern": "("}, {"type": "string", "pattern": "(a+)+$"}, {"anyOf": []},
    {"type": "string", "minLength": 10**9}, {"type": "integer", "minimum": 10**30},
    {"type": "array", "minItems": 10**7}, {"allOf": [{"type": "string"}, {"type": "integer"}]},
    _nested(6), _nested(60), {"type": ["string", "null"]}, {"const": {"a": [1]}}, {"not": {}},
    {"properties": {f"k{i}": {"type": "string"} for i in range(200)}},
]  # fmt: skip
_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(_EDGES),
    st.sampled_from(_FLOATS),
    st.sampled_from(_TEXTS),
    st.text(max_size=8),
)
_anything: SearchStrategy[Json] = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
_integers = st.one_of(st.integers(0, 9), st.integers(-3, 300), st.sampled_from(_EDGES))
_numbers = st.one_of(st.floats(-3, 3, allow_nan=False), st.sampled_from(_FLOATS), _integers)
_texts = st.one_of(WORDS, st.sampled_from(_TEXTS), st.text(max_size=20))


def values(schema: Body, definitions: Body, depth: int = _DEPTH) -> SearchStrategy[Json]:
    """Return values that `schema` takes, or nearly: bounds are overstepped on purpose."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return values(definitions.get(name, {}), definitions, depth)
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return st.one_of([values(choice, definitions, depth) for choice in choices])
    match schema.get("type"):
        case "integer":
            return _integers
        case "number":
            return _numbers
        case "boolean":
            return st.booleans()
        case "string":
            return _texts
        case "null":
            return st.none()
        case "array":
            return _lists(schema, definitions, depth)
        case "object":
            return _objects(schema, definitions, depth)
    return _anything


def _lists(schema: Body, definitions: Body, depth: int) -> SearchStrategy[Json]:
    if not depth:
        return st.just([])
    items = values(schema.get("items", {}), definitions, depth - 1)
    return st.one_of(
        st.lists(items, max_size=3),
        st.tuples(items, st.sampled_from([5, 40, 300])).map(lambda pair: [pair[0]] * pair[1]),
    )


def _objects(schema: Body, definitions: Body, depth: int) -> SearchStrategy[Json]:
    known = schema.get("properties", {})
    if not depth or not known:
        return st.dictionaries(_texts, _scalars, max_size=3)
    required = {
        k: values(v, definitions, depth - 1) for k, v in known.items() if k in _must(schema)
    }
    others = [k for k in known if k not in required]
    if not others:
        return st.fixed_dictionaries(required)
    return st.lists(st.sampled_from(others), max_size=3, unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries(
            required | {k: values(known[k], definitions, depth - 1) for k in chosen}
        )
    )


def _must(schema: Body) -> list[str]:
    required: list[str] = schema.get("required", [])
    return required


# Fields whose values an engine or the front executes: patterns, grammars, schemas, templates.
_tool = st.sampled_from(_SCHEMAS).map(
    lambda schema: {"type": "function", "function": {"name": "f", "parameters": schema}}
)
_PROGRAMS: dict[str, SearchStrategy[Json]] = {
    "regex": st.sampled_from(_PATTERNS),
    "stop_regex": st.sampled_from(_PATTERNS) | st.lists(st.sampled_from(_PATTERNS), max_size=3),
    "ebnf": st.sampled_from(_GRAMMARS),
    "json_schema": st.sampled_from(_SCHEMAS).map(json.dumps) | st.sampled_from(_TEXTS),
    "response_format": st.sampled_from(_SCHEMAS).map(
        lambda schema: {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    ),
    "tools": st.lists(_tool, max_size=3),
    "tool_choice": st.sampled_from(
        ["auto", "none", "required", {"type": "function", "function": {"name": "f"}}]
    ),
    "chat_template_kwargs": st.dictionaries(
        st.sampled_from(["tools", "messages", "add_generation_prompt", "tokenize", "x", "model"]),
        _scalars,
        max_size=2,
    ),
    "logit_bias": st.dictionaries(
        st.sampled_from(["0", "5", "255", "256", "-1", "x", "1e3"]), _numbers, max_size=3
    ),
    "stop": _texts | st.lists(_texts, max_size=5),
}


def bodies(schema: Body, base: SearchStrategy[Body]) -> SearchStrategy[Body]:
    """Return valid bodies with up to four fields replaced by values drawn from `schema`."""
    known, definitions = schema["properties"], schema.get("$defs", {})

    def field_values(name: str) -> SearchStrategy[Json]:
        tried = [values(known[name], definitions), values(known[name], definitions), _anything]
        if name in _PROGRAMS:
            tried += [_PROGRAMS[name]] * 3
        return st.one_of(tried)

    by_name = {name: field_values(name) for name in known}
    changes = st.lists(st.sampled_from(sorted(known)), max_size=4, unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries({name: by_name[name] for name in chosen})
    )
    return st.tuples(base, changes).map(lambda pair: pair[0] | pair[1])


@dataclass
class Found:
    """Results of one client process; `failures` are shrunk, `slowest` took `slowest_s`."""

    sent: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    failures: list[Body] = field(default_factory=list)
    slowest_s: float = 0.0
    slowest: Json = None


class Wrong(AssertionError):
    """A request got a forbidden answer."""


def run(url: str, schemas: dict[str, Body], number: int, count: int, inflight: Path) -> Found:
    """Send `count` requests, and more while shrinking; `inflight` holds those not answered yet."""
    os.nice(10)
    asking = _Asking(url, inflight)
    requests = st.one_of(
        [
            bodies(schemas[name], base).map(partial(_to, path))
            for name, (path, base) in ASKED.items()
        ]
    )
    attempt = 0
    with asyncio.Runner() as runner:
        while asking.found.sent < count and attempt < 20:
            attempt += 1
            _draw(runner, asking, requests, number * 1000 + attempt, count)
        runner.run(asking.close())
    return asking.found


def _to(path: str, body: Body) -> tuple[str, Body]:
    return path, body


def _draw(runner: asyncio.Runner, asking: _Asking, requests: Any, number: int, count: int) -> None:
    @seed(number)
    @settings(
        max_examples=max(1, (count - asking.found.sent) // 2),
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @given(st.lists(requests, min_size=1, max_size=BATCH))
    def examples(batch: list[tuple[str, Body]]) -> None:
        if asking.found.sent < count or asking.failing:
            runner.run(asking.all(batch))

    try:
        examples()
    except Exception as error:
        # The last batch sent is the shrunk one; a failure that was not reproduced is kept too.
        asking.found.failures.append({"error": repr(error)[:2000], "batch": asking.failing})
        asking.failing = None


class _Asking:
    def __init__(self, url: str, inflight: Path) -> None:
        self.found = Found()
        self.failing: Json = None
        self._inflight = inflight
        self._client = httpx.AsyncClient(base_url=url, timeout=ANSWER_TIMEOUT_S)

    async def close(self) -> None:
        await self._client.aclose()

    async def all(self, batch: list[tuple[str, Body]]) -> None:
        self._inflight.write_text(json.dumps(batch))
        wrong = [w for w in await asyncio.gather(*(self._one(*one) for one in batch)) if w]
        if wrong:
            self.failing = [{"path": path, "body": body} for path, body in batch]
            raise Wrong("; ".join(wrong))

    async def _one(self, path: str, body: Body) -> str | None:
        began = time.monotonic()
        self.found.sent += 1
        try:
            raw = json.dumps(body).encode()
            headers = {"content-type": "application/json"}
            response = await self._client.post(path, content=raw, headers=headers)
        except httpx.TimeoutException:
            self.found.statuses["timeout"] += 1
            return f"{path}: no answer within {ANSWER_TIMEOUT_S:g} s"
        finally:
            self._note_time(time.monotonic() - began, path, body)
        outcome = _outcome(response, body)
        self.found.statuses[outcome.partition(" ")[0]] += 1
        return None if _allowed(outcome, body) else f"{path}: {outcome}: {response.text[-800:]}"

    def _note_time(self, took_s: float, path: str, body: Body) -> None:
        if took_s > self.found.slowest_s:
            self.found.slowest_s = took_s
            self.found.slowest = {"path": path, "body": json.dumps(body)[:4000]}


def _outcome(response: httpx.Response, body: Body) -> str:
    """Return status and error code; a stream's error event counts too."""
    if response.status_code == 200 and "event-stream" in response.headers.get("content-type", ""):
        for line in response.text.splitlines():
            if line.startswith('data: {"error"'):
                return f"200+{json.loads(line[6:])['error']['code']}"
        return "200"
    if response.status_code < 400:
        return str(response.status_code)
    try:
        return f"{response.status_code} {response.json()['error']['code']}"
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code} without an error body"


def _allowed(outcome: str, body: Body) -> bool:
    refused = ("503 overloaded", "200+overloaded", "429 ")
    if outcome.startswith(refused) or outcome == "200":
        return True
    if outcome == "200+invalid_request_error":  # it had begun when its grammar had no token left
        return not _GRAMMAR_FIELDS.isdisjoint(body)
    if outcome in ("504 deadline_exceeded", "200+deadline_exceeded"):
        return "timeout" in body
    return outcome.startswith("4") and not outcome.endswith("without an error body")
