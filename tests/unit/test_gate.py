"""The gate: what it lets through and what it refuses, and in which words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pd_eagle.errors import InvalidRequest
from pd_eagle.http import bodies
from pd_eagle.messages import EngineInfo, Options, Request
from pd_eagle.requests import gate
from pd_eagle.requests.bounds import shown

LIMITS = EngineInfo(
    pid=1,
    scheduler_pids=[2],
    max_total_tokens=4096,
    context_length=1024,
    vocab_size=256,
)
LONG_DIGITS = 10**26


def check(params: dict[str, Any] | None = None, **options: Any) -> None:
    gate.check(Request("r", [1, 2, 3], params or {}, Options(**options)), LIMITS)


def check_body(places: int = 64, **fields: Any) -> None:
    bodies.check(fields, LIMITS, places)


def with_properties(count: int) -> dict[str, Any]:
    return {"function": {"parameters": {"properties": {f"p{i}": {} for i in range(count)}}}}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


# --- what goes to an engine

TAKEN: dict[str, Any] = {
    "max_new_tokens": 8,
    "min_new_tokens": 2,
    "stop": ["\n\n", "END"],
    "stop_token_ids": [0, 255],
    "stop_regex": [r"\d{1,3}\.", r"(User|Human):", "(?i)stop"],
    "temperature": 0,
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.1,
    "frequency_penalty": -2,
    "repetition_penalty": 1.1,
    "json_schema": json.dumps({"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}}),
    "ignore_eos": True,
    "logit_bias": {"5": -100, "255": 1.5},
    "sampling_seed": -(2**63),
    "custom_params": {"a": [1, "b"], "c": {"d": None}},
    "ebnf_full_assistant": False,
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_an_engine_can_take_is_let_through(name: str) -> None:
    check({name: TAKEN[name]})


def test_unset_parameters_are_let_through() -> None:
    check(dict.fromkeys(gate.SAMPLING))


BAD_SAMPLING: dict[str, tuple[str, Any, str]] = {
    "more digits than 64 bits": ("sampling_seed", LONG_DIGITS, "from -9223372036854775808"),
    "a number as text": ("sampling_seed", "12", "a whole number"),
    "top_k beyond 32 bits": ("top_k", 2**31, "-1 or a whole number from 1 to 2147483647"),
    "top_k of none": ("top_k", 0, "-1 or a whole number"),
    "a huge minimum": ("min_new_tokens", 10**9, "from 0 to 1024"),
    "a stop token of no vocabulary": ("stop_token_ids", [1, 256], "from 0 to 255 .found 256"),
    "a negative stop token": ("stop_token_ids", [-1], "found -1"),
    "a stop token of true": ("stop_token_ids", [True], "found True"),
    "a flood of stop tokens": ("stop_token_ids", [1] * 1025, "at most 1024"),
    "an empty stop": ("stop", "", "a text of 1 to 4096 bytes"),
    "an empty stop among others": ("stop", ["a", ""], "a text of 1 to 4096 bytes"),
    "a stop of 15 MB": ("stop", "x" * 15_000_000, "xxx'…: wanted a text of 1 to 4096"),
    "a flood of stops": ("stop", ["a"] * 33, "a list of at most 32"),
    "half of a character": ("stop", "\ud800", "a text of 1 to 4096 bytes of UTF-8"),
    "no number": ("temperature", float("nan"), "a number from 0"),
    "endless": ("temperature", float("inf"), "at most 1e.06"),
    "a bias of a stranger": ("logit_bias", {"256": 1}, "token ids from 0 to 255"),
    "a bias by a word": ("logit_bias", {"x": 1}, "found 'x': 1"),
    "an endless bias": ("logit_bias", {"1": float("inf")}, "found '1': inf"),
    "beams": ("beam_width", 4, "unset, it is not supported"),
    "a deep object": ("custom_params", {"a": {"b": {"c": {"d": {}}}}}, "at most 3 levels"),
    "a long number inside": ("custom_params", {"a": LONG_DIGITS}, "integers of 64 bits"),
    "a flag as a word": ("ignore_eos", "yes", "true or false"),
}


@pytest.mark.parametrize(("name", "value", "message"), BAD_SAMPLING.values(), ids=BAD_SAMPLING)
def test_what_an_engine_would_die_of_names_field_value_and_form(
    name: str, value: Any, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message) as refused:
        check({name: value})
    assert str(refused.value).startswith(f"{name}={shown(value)}: wanted ")
    assert len(str(refused.value)) < 400


BAD_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "more than the metadata holds": ({"top_logprobs_num": 129}, "from 0 to 128"),
    "a stranger's log probability": ({"token_ids_logprob": [256]}, "found 256"),
    "a start beyond the prompt": ({"logprob_start_len": 3}, "less than the prompt's 3"),
    "a start before it": ({"logprob_start_len": -2}, "from -1"),
    "a huge priority": ({"priority": 2**31}, "from -2147483648"),
    "a long salt": ({"cache_salt": "x" * 4097}, "at most 4096 bytes"),
    "a long header": ({"external_trace_header": {"a": "x" * 9000}}, "at most 8192 bytes"),
}


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_what_goes_beside_the_parameters_is_bounded_too(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        check(**options)


def test_a_small_vocabulary_bounds_the_log_probabilities() -> None:
    small = EngineInfo(1, [2], 4096, 1024, 16)
    with pytest.raises(InvalidRequest, match="from 0 to 16"):
        gate.check(Request("r", [1], {}, Options(top_logprobs_num=17)), small)


def test_what_must_fit_together() -> None:
    with pytest.raises(InvalidRequest, match="min_new_tokens=9: wanted at most max_new_tokens=8"):
        check({"min_new_tokens": 9, "max_new_tokens": 8})
    with pytest.raises(InvalidRequest, match="json_schema and regex: wanted at most one"):
        check({"json_schema": "{}", "regex": "a"})


UNKNOWN = {
    "is_normalized": "is not one of them",
    "return_logprob": "an argument beside sampling_params",
    "flavour": "is not one of them; wanted one of beam_width",
}


@pytest.mark.parametrize(("name", "message"), UNKNOWN.items())
def test_an_unknown_parameter_is_told_with_what_was_meant(name: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        check({name: 1})


# --- programs

BAD_PROGRAMS: dict[str, tuple[str, Any, str]] = {
    "a star": ("stop_regex", "(a+)+$", "bounded repeats"),
    "a star alone": ("stop_regex", ".*x", "bounded repeats"),
    "bounded, but in too many ways": ("stop_regex", "(a{0,9}){0,9}b", "ways to match"),
    "many that are each in order": ("stop_regex", ["a{0,9}a{0,9}b"] * 9, "ways to match"),
    "a look ahead": ("stop_regex", "a(?=b)", "without lookaround"),
    "itself again": ("stop_regex", r"(a)\1", "without lookaround and without references"),
    "no expression": ("stop_regex", "[", "a regular expression of Python"),
    "a long match": ("stop_regex", "a{300}", "bounded repeats"),
    "no JSON": ("json_schema", "{", "a JSON schema"),
    "a deep array": ("json_schema", json.dumps(nested(60)), "at most 32 levels"),
    "a deeper array": ("json_schema", "[" * 100_000, "a JSON schema"),
    "itself": ("json_schema", '{"$ref": "#"}', "leads to more than itself"),
    "itself by a name": (
        "json_schema",
        '{"$defs": {"x": {"$ref": "#/$defs/y"}, "y": {"$ref": "#/$defs/x"}}, "$ref": "#/$defs/x"}',
        "leads to more than itself",
    ),
    "itself by a choice": ("json_schema", '{"anyOf": [{"$ref": "#"}]}', "more than itself"),
    "a flood of properties": (
        "json_schema",
        json.dumps({"properties": {f"p{i}": {} for i in range(1025)}}),
        "at most 1024 properties",
    ),
    "a huge count": ("json_schema", '{"minItems": 1e9}', "minItems from 0"),
    "a huge pattern": ("json_schema", '{"pattern": "a{1,999999}"}', "pattern is a regular"),
    "optional letters": ("regex", "[a-z]?" * 40, "at most 16 repeats in a row"),
    "optional groups": ("regex", "([a-z]?){40}", "at most 16 repeats in a row"),
    "deep groups": ("regex", "(" * 40 + ")" * 40, "at most 32 deep"),
    "a long expression": ("regex", "a" * 5000, "at most 4096 bytes"),
    "an optional grammar": ("ebnf", "root ::= " + "[a-z]? " * 300, "repeats in a row"),
    "a deep grammar": ("ebnf", "root ::= " + "(" * 2000 + ")" * 2000, "at most 32 deep"),
    "a long grammar": ("ebnf", "root ::= " + '"a" ' * 5000, "at most 16384 bytes"),
    "a tag with a deep schema": (
        "structural_tag",
        json.dumps({"structures": [{"schema": nested(40)}]}),
        "at most 32 levels",
    ),
}


@pytest.mark.parametrize(("name", "value", "message"), BAD_PROGRAMS.values(), ids=BAD_PROGRAMS)
def test_a_program_without_a_bound_is_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        check({name: value})


GOOD_PROGRAMS: dict[str, tuple[str, Any]] = {
    "a list of lists": ("json_schema", json.dumps(nested(6))),
    "a tree": (
        "json_schema",
        json.dumps({"properties": {"inner": {"$ref": "#"}, "x": {"maxLength": 65536}}}),
    ),
    "a shared part": (
        "json_schema",
        json.dumps(
            {
                "$defs": {"a": {"type": "string"}},
                "properties": {"x": {"$ref": "#/$defs/a"}, "y": {"$ref": "#/$defs/a"}},
            }
        ),
    ),
    "a choice of references": (
        "json_schema",
        json.dumps({"$defs": {"a": {}, "b": {}}, "anyOf": [{"$ref": "#/$defs/a"}]}),
    ),
    "no schema": ("json_schema", ""),
    "no tags": ("structural_tag", ""),
    "no expression": ("regex", ""),
    "no grammar": ("ebnf", ""),
    "one letter": ("regex", "a"),
    "a date": ("regex", r"\d{4}-\d{2}-\d{2}(T\d{2}:\d{2}(:\d{2})?)?"),
    "fields": ("regex", ",".join(["[^,]*"] * 20)),
    "an address": ("regex", r"[\w.%+-]+@[\w.-]+\.[a-z]{2,}"),
    "a grammar": ("ebnf", 'root ::= "[" (item ("," item)*)? "]"\nitem ::= [0-9]+ | [a-z]+'),
}


@pytest.mark.parametrize(("name", "value"), GOOD_PROGRAMS.values(), ids=GOOD_PROGRAMS)
def test_a_usual_program_is_let_through(name: str, value: Any) -> None:
    check({name: value})


# --- bodies

BAD_BODIES: dict[str, tuple[dict[str, Any], str]] = {
    "a seed of 26 digits": ({"seed": "9" * 26}, "seed=99999999999999999999999999: wanted a whole"),
    "a seed of a million digits": ({"seed": "9" * 10**6}, "seed='999.*'…: wanted a whole number"),
    "a float beyond": ({"seed": 1e26}, "seed=.*: wanted a whole number from -92"),
    "too many answers": ({"n": 100_000}, "from 1 to 4096"),
    "more than may wait": ({"n": 65}, "1 prompts with n=65: wanted at most 64 answers"),
    "as text": ({"n": "65"}, "with n=65"),
    "prompts": ({"prompt": ["a"] * 65}, "65 prompts with n=1: wanted at most 64"),
    "prompts of ids": ({"prompt": [[1]] * 65}, "65 prompts"),
    "both": ({"prompt": ["a"] * 8, "n": 9}, "8 prompts with n=9"),
    "logprobs": ({"logprobs": 129}, "logprobs=129: wanted a whole number from 0 to 128"),
    "top_logprobs": ({"top_logprobs": 300}, "top_logprobs=300"),
    "stop tokens": ({"stop_token_ids": [2**40]}, "stop_token_ids"),
    "80,000 properties": (
        {"tools": [with_properties(80_000)]},
        "at most 16384 values together",
    ),
    "a flood of tools": ({"tools": [{}] * 513}, "at most 512 tools"),
    "tools of a message": (
        {"messages": [{"role": "system", "tools": [{"function": {"parameters": nested(40)}}]}]},
        "messages whose tools are tools whose parameters",
    ),
    "a flood of messages": ({"messages": [{}] * 5000}, "at most 4096 messages"),
    "a flood of parts": (
        {"messages": [{"content": [{"type": "text", "text": "x"}] * 1025}]},
        "at most 1024 parts",
    ),
    "a strange part": ({"messages": [{"content": [{"type": "x"}]}]}, "found {'type': 'x'}"),
    "a mixed prompt": ({"prompt": [1, "x"]}, "token ids from 0 to 255 .found 'x'"),
    "another mixed one": ({"prompt": ["x", [1]]}, "a list of either .found .1."),
    "a prompt of nothing": ({"prompt": [None]}, "found None"),
    "a stranger in the second": ({"prompt": [[1], [256]]}, "found 256"),
    "ids": ({"input_ids": [1, -1]}, "found -1"),
    "rooms": ({"bootstrap_room": [1] * 5000}, "at most 4097 values"),
    "log probabilities": (
        {"top_logprobs": 128, "max_tokens": 8000},
        "top_logprobs=128 for 1 answers of 8000 tokens: wanted at most 131072",
    ),
    "log probabilities of many": ({"logprobs": 20, "n": 60}, "for 60 answers of 1024 tokens"),
    "a flood of calls": ({"messages": [{"tool_calls": [{}] * 50}] * 100}, "at most 1024 parts"),
    "a word": ({"response_format": "json"}, "response_format='json': wanted an object"),
    "a deep format": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": nested(40)}}},
        "at most 32 levels",
    ),
    "a format of itself": (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}},
        "leads to more than itself",
    ),
    "a template's own argument": ({"chat_template_kwargs": {"tools": []}}, "no 'tools' in it"),
    "another": ({"chat_template_kwargs": {"add_generation_prompt": False}}, "no 'add_generation"),
    "no arguments": ({"chat_template_kwargs": [1]}, "an object"),
    "an adapter": ({"lora_path": "x"}, "unset, it is not supported here"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), BAD_BODIES.values(), ids=BAD_BODIES)
def test_a_body_beyond_the_gate_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as refused:
        check_body(**fields)
    assert len(str(refused.value)) < 500


GOOD_BODIES: dict[str, dict[str, Any]] = {
    "a prompt of ids": {"prompt": [1] * 1000},
    "digits": {"seed": "12", "max_tokens": "8", "temperature": "0.5"},
    "as many as may wait": {"prompt": ["a"] * 8, "n": 8},
    "usual log probabilities": {"top_logprobs": 20, "max_tokens": 1000},
    "wide log probabilities": {"top_logprobs": 128, "max_tokens": 1000},
    "a prompt of several": {"prompt": [[1, 2], [3]]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
    "flags": {"logprobs": True, "echo": False},
    "nothing": dict.fromkeys(bodies.BODY),
    "arguments": {"chat_template_kwargs": {"enable_thinking": False, "documents": [{"a": "b"}]}},
    "what pydantic says better": {"seed": "x", "max_tokens": "many"},
    "tools": {
        "tools": [
            {"type": "function", "function": {"name": f"f{i}", "parameters": nested(3)}}
            for i in range(100)
        ]
    },
}


@pytest.mark.parametrize("fields", GOOD_BODIES.values(), ids=GOOD_BODIES)
def test_a_usual_body_is_let_through(fields: dict[str, Any]) -> None:
    check_body(**fields)


# --- how values are shown

SHOWN: list[tuple[Any, str]] = [
    ("abc", "'abc'"),
    ("x" * 100, f"'{'x' * 60}'…"),
    (10**5000, "a number of 16610 bits"),
    ([1, 2], "[1, 2]"),
    ([1] * 100, "a list of 100"),
    ({"a": 1}, "{'a': 1}"),
    ({"a": "x" * 100}, "a dict of 1"),
    ([10**5000], "a list of 1"),
    (None, "None"),
    (object, "a type"),
]


@pytest.mark.parametrize(("value", "text"), SHOWN, ids=[text for _, text in SHOWN])
def test_a_value_is_shown_short(value: Any, text: str) -> None:
    assert shown(value) == text
