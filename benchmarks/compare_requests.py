"""The requests of `compare_sglang`: every route, its fields one by one, and wrong ones.

For a tiny model whose words are w1, w2, …; greedy, so that two servers must give the same answer.
Files in `benchmarks/compare/` add more: one JSON object a line, with `name`, `path` and `body`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.compare_fields import CONTEXT, OPTIONS, PROMPTS, SAMPLING, WRONG_GENERATE

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path(__file__).with_name("compare")
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
FATAL = frozenset(
    (
        *("completion: id outside", "completion: id below"),
        *("generate, wrong: id outside", "generate, wrong: empty"),
    )
)


@dataclass(frozen=True, slots=True)
class Case:
    """One request; `body` is sent as JSON unless it is bytes or None."""

    name: str
    path: str
    body: Any = None
    method: str = "POST"


#: Fields of OpenAI's two APIs, one or a few at a time.
_SHARED: dict[str, dict[str, Any]] = {
    "plain": {},
    "one token": {"max_tokens": 1},
    "n": {"n": 2},
    "n of three": {"n": 3, "max_tokens": 3},
    "stop": {"stop": "w1"},
    "stops": {"stop": ["w1", "w2", "w3"]},
    "stop token": {"stop_token_ids": [10, 20, 30, 40]},
    "stop kept": {"stop": ["w1"], "no_stop_trim": True},
    "min tokens": {"min_tokens": 5},
    "ignore eos": {"ignore_eos": True},
    "special tokens": {"skip_special_tokens": False},
    "top_p": {"top_p": 0.5},
    "top_k": {"top_k": 1},
    "min_p": {"min_p": 0.1},
    "frequency": {"frequency_penalty": 0.5},
    "presence": {"presence_penalty": 0.5},
    "repetition": {"repetition_penalty": 1.2},
    "bias": {"logit_bias": {"5": 100}},
    "bias down": {"logit_bias": {"5": -100, "6": -100}},
    "seed": {"seed": 1},
    "user": {"user": "someone"},
    "rid": {"rid": "compare"},
    "regex": {"regex": "w1|w5|w9"},
    "dead end": {"regex": "w1 w2"},
    "stop regex": {"stop_regex": "w1\\d"},
    "model default": {"model": "default"},
    "details": {"return_cached_tokens_details": True},
    "token ids": {"return_token_ids": True},
    "meta": {"return_meta_info": True},
}
_WRONG: dict[str, dict[str, Any]] = {
    "temperature below": {"temperature": -1},
    "temperature text": {"temperature": "hot"},
    "top_p above": {"top_p": 2},
    "top_p zero": {"top_p": 0},
    "top_k zero": {"top_k": 0},
    "min_p above": {"min_p": 2},
    "penalty above": {"frequency_penalty": 3},
    "repetition above": {"repetition_penalty": 3},
    "max_tokens below": {"max_tokens": -1},
    "max_tokens text": {"max_tokens": "many"},
    "max_tokens above": {"max_tokens": 10_000},
    "min above max": {"min_tokens": 9, "max_tokens": 4},
    "n zero": {"n": 0},
    "bias of no token": {"logit_bias": {"x": 1}},
    "bias too far": {"logit_bias": {"100000": 1}},
    "stop number": {"stop": 5},
    "unknown model": {"model": "gpt-4"},
    "two grammars": {"regex": "w1", "ebnf": 'root ::= "w1"'},
    "lora": {"lora_path": "x"},
    "stream text": {"stream": "maybe"},
}


def cases() -> list[Case]:
    """Return all requests; names are unique."""
    return [
        *_openai(),
        *_only_chat(),
        *_only_completion(),
        *_generate(),
        *_tokenizer(),
        *_score(),
        *_information(),
        *_refused(),
        *_bodies(),
        *_from_files(),
    ]


def _chat(**fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": PROMPTS[0]}]
    return {"messages": messages, "temperature": 0, "max_tokens": 8} | fields


def _completion(**fields: Any) -> dict[str, Any]:
    return {"prompt": PROMPTS[0], "temperature": 0, "max_tokens": 8} | fields


def _openai() -> Iterator[Case]:
    for kind, path, make in (("chat", CHAT, _chat), ("completion", COMPLETION, _completion)):
        for name, fields in _SHARED.items():
            if "rid" in fields:
                fields = {"rid": f"compare-{kind}"}  # no two at a time may have the same
            yield Case(f"{kind}: {name}", path, make(**fields))
            fields = fields | ({"rid": f"compare-{kind}-streamed"} if "rid" in fields else {})
            streamed = make(**fields, stream=True, stream_options={"include_usage": True})
            yield Case(f"{kind}, streamed: {name}", path, streamed)
        for name, fields in _WRONG.items():
            yield Case(f"{kind}, wrong: {name}", path, make(**fields))
        for number, prompt in enumerate(PROMPTS):
            given = {"messages": [{"role": "user", "content": prompt}]}
            own = given if kind == "chat" else {"prompt": prompt}
            yield Case(f"{kind}: prompt {number}", path, make(**own, max_tokens=24))


def _only_chat() -> Iterator[Case]:
    turns = [
        {"role": "system", "content": "w1 w2"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "w3"}, {"type": "text", "text": "w4"}],
        },
        {"role": "assistant", "content": "w5"},
        {"role": "user", "content": "w6"},
    ]
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    given: dict[str, dict[str, Any]] = {
        "turns": {"messages": turns},
        "max_completion_tokens": {"max_completion_tokens": 4, "max_tokens": None},
        "logprobs": {"logprobs": True},
        "top logprobs": {"logprobs": True, "top_logprobs": 3},
        "top logprobs, streamed": {"logprobs": True, "top_logprobs": 2, "stream": True},
        "tools unused": {"tools": [tool], "tool_choice": "none"},
        "tools": {"tools": [tool]},
        "text format": {"response_format": {"type": "text"}},
        "json object": {"response_format": {"type": "json_object"}},
        "continued": {"messages": turns[:3], "continue_final_message": True},
        "template arguments": {"chat_template_kwargs": {"x": 1}},
        "no messages": {"messages": []},
        "null content": {"messages": [{"role": "user", "content": None}]},
        "unknown role": {"messages": [{"role": "clown", "content": "w1"}]},
        "an image": {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "too long": {"messages": [{"role": "user", "content": "w1 " * 2 * CONTEXT}]},
    }
    return (Case(f"chat: {name}", CHAT, _chat(**fields)) for name, fields in given.items())


def _only_completion() -> Iterator[Case]:
    given: dict[str, dict[str, Any]] = {
        "prompts": {"prompt": list(PROMPTS[:3])},
        "ids": {"prompt": [5, 17, 200]},
        "lists of ids": {"prompt": [[5, 17], [200, 3, 4]]},
        "echo": {"echo": True},
        "logprobs": {"logprobs": 2},
        "logprobs zero": {"logprobs": 0},
        "echo with logprobs": {"echo": True, "logprobs": 1},
        "logprobs, streamed": {"logprobs": 2, "stream": True},
        "echo, streamed": {"echo": True, "stream": True},
        "prompts, streamed": {"prompt": list(PROMPTS[:2]), "stream": True},
        "echo without a token": {"echo": True, "logprobs": 1, "max_tokens": 0},
        "no token": {"max_tokens": 0},
        "suffix": {"suffix": "w9"},
        "best_of": {"best_of": 3},
        "empty prompt": {"prompt": ""},
        "no prompts": {"prompt": []},
        "id outside": {"prompt": [999_999]},
        "id below": {"prompt": [-1]},
        "almost all of the context": {"prompt": "w1 " * (CONTEXT - 8), "max_tokens": 8},
        "one more than the context": {"prompt": "w1 " * (CONTEXT - 8), "max_tokens": 9},
        "a prompt of the context": {"prompt": "w1 " * CONTEXT, "max_tokens": 1},
    }
    return (Case(f"completion: {n}", COMPLETION, _completion(**f)) for n, f in given.items())


def _generate() -> Iterator[Case]:
    base = {"temperature": 0, "max_new_tokens": 8}
    for name, params in SAMPLING.items():
        body = {"text": PROMPTS[0], "sampling_params": base | params}
        yield Case(f"generate: {name}", "/generate", body)
        yield Case(f"generate, streamed: {name}", "/generate", body | {"stream": True})
    for name, fields in OPTIONS.items():
        body = {"text": PROMPTS[0], "sampling_params": base} | fields
        yield Case(f"generate: {name}", "/generate", body)
        if "rid" in body:
            body = body | {"rid": "compare-streamed"}
        yield Case(f"generate, streamed: {name}", "/generate", body | {"stream": True})
    for name, fields in WRONG_GENERATE.items():
        body = {"text": PROMPTS[0], "sampling_params": base} | fields
        yield Case(f"generate, wrong: {name}", "/generate", body)
    for number, prompt in enumerate(PROMPTS):
        body = {"text": prompt, "sampling_params": base | {"max_new_tokens": 32}}
        yield Case(f"generate: prompt {number}", "/generate", body)
    instances = [{"text": prompt} for prompt in PROMPTS[:2]]
    parameters = {"sampling_params": base}
    vertex = {"instances": instances, "parameters": parameters}
    yield Case("vertex", "/vertex_generate", vertex)
    yield Case("invocations", "/invocations", _chat())


def _tokenizer() -> Iterator[Case]:
    messages = [{"role": "user", "content": "w1 w2"}]
    tokenize: dict[str, dict[str, Any]] = {
        "text": {"prompt": PROMPTS[0]},
        "texts": {"prompt": list(PROMPTS)},
        "empty": {"prompt": ""},
        "no special": {"prompt": "w1", "add_special_tokens": False},
        "messages": {"messages": messages},
        "messages as they are": {"messages": messages, "add_generation_prompt": False},
        "both": {"prompt": "w1", "messages": messages},
        "neither": {},
        "ids": {"prompt": [1, 2]},
    }
    detokenize: dict[str, dict[str, Any]] = {
        "ids": {"tokens": [5, 17, 200]},
        "lists": {"tokens": [[5], [17, 200]]},
        "none": {"tokens": []},
        "special": {"tokens": [0, 5, 0]},
        "special kept": {"tokens": [0, 5, 0], "skip_special_tokens": False},
        "outside": {"tokens": [999_999]},
        "below": {"tokens": [-1]},
        "text": {"tokens": "w1"},
        "missing": {},
    }
    for prefix in ("", "/v1"):
        for name, body in tokenize.items():
            yield Case(f"{prefix}/tokenize: {name}", f"{prefix}/tokenize", body)
        for name, body in detokenize.items():
            yield Case(f"{prefix}/detokenize: {name}", f"{prefix}/detokenize", body)


def _score() -> Iterator[Case]:
    base = {"query": "w5 w17", "items": ["w1", "w2"], "label_token_ids": [1, 2, 3]}
    given: dict[str, dict[str, Any]] = {
        "plain": {},
        "softmax": {"apply_softmax": True},
        "temperature": {"apply_softmax": True, "temperature": 2.0},
        "temperature alone": {"temperature": 2.0},
        "item first": {"item_first": True},
        "logprobs": {"return_token_logprobs": True},
        "one item": {"items": "w9"},
        "no items": {"items": []},
        "ids": {"query": [5, 17], "items": [[1], [2]]},
        "labels for each": {"label_token_ids": [[1, 2], [3, 4]]},
        "no labels": {"label_token_ids": None},
        "a label twice": {"label_token_ids": [1, 1]},
        "a label outside": {"label_token_ids": [999_999]},
        "mixed": {"query": "w5", "items": [[1], [2]]},
        "pooled": {"return_pooled_hidden_states": True},
    }
    return (Case(f"score: {name}", "/v1/score", base | fields) for name, fields in given.items())


def _information() -> Iterator[Case]:
    paths = (
        *("/model_info", "/get_model_info", "/v1/models", "/v1/models/default", "/v1/models/x"),
        *("/ping", "/ready", "/health_generate", "/v1/loads", "/nowhere", "/flush_cache"),
    )
    for path in paths:
        yield Case(f"GET {path}", path, method="GET")
    yield Case("POST /flush_cache", "/flush_cache", {})
    for path in (CHAT, "/generate", "/v1/score", "/tokenize"):
        yield Case(f"GET {path}", path, method="GET")
        yield Case(f"DELETE {path}", path, method="DELETE")


def _refused() -> Iterator[Case]:
    yield Case("embeddings", "/v1/embeddings", {"input": "w1", "model": "default"})
    yield Case("encode", "/encode", {"text": "w1"})
    yield Case("classify", "/classify", {"text": "w1"})
    yield Case("v1 classify", "/v1/classify", {"input": "w1", "model": "default"})
    yield Case("rerank", "/v1/rerank", {"query": "w1", "documents": ["w2"]})


def _bodies() -> Iterator[Case]:
    bodies = {"empty": b"", "no JSON": b"{", "a list": b"[]", "a text": b'"x"', "null": b"null"}
    for path in (CHAT, COMPLETION, "/generate", "/tokenize", "/detokenize", "/v1/score"):
        for name, body in bodies.items():
            yield Case(f"{path}: a body that is {name}", path, body)


def _from_files() -> Iterator[Case]:
    for file in sorted(FOLDER.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            given = json.loads(line)
            method = given.get("method", "POST")
            yield Case(f"{file.stem}: {given['name']}", given["path"], given.get("body"), method)
