"""Bounds on the bodies of SGLang's own routes: every field that costs or reaches an engine.

Checked on the JSON, before SGLang reads it. Sampling parameters and what a single prompt asks for
are left to the gate. It does not know what SGLang does with a body.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pd_eagle.errors import InvalidRequest
from pd_eagle.http import bodies
from pd_eagle.requests.bounds import (
    INT32_MAX,
    Bound,
    Each,
    Flag,
    Number,
    Text,
    TokenIds,
    Unset,
    Unused,
    as_number,
    shown,
)
from pd_eagle.requests.gate import MAX_LABEL_BYTES, MAX_TOP_LOGPROBS, OPTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pd_eagle.messages import EngineInfo

#: A text is tokenized whole, however long the context is.
MAX_TEXT_BYTES = 2**20
#: Of all texts or lists of ids of one request together.
MAX_TEXTS = 1024
MAX_IDS = 2**18

_TEXTS = Each(Text(MAX_TEXT_BYTES), MAX_TEXTS)
_EMBEDDINGS = Unset("embeddings cannot be given in place of tokens here")


def check_generate(fields: Mapping[str, Any], limits: EngineInfo, places: int) -> None:
    """Raise `InvalidRequest` for a `/generate` body that asks for too much, or in vain."""
    total = _answers(fields, places)
    for name, bound in OPTIONS.items():
        value = fields.get(name)
        if value is None or isinstance(bound, Unused):
            continue
        for one in _of_each_prompt(bound, value):
            _check(name, one, bound, limits)
    _check_logprobs(fields, total, limits)


def _answers(fields: Mapping[str, Any], places: int) -> int:
    """Return how many answers are asked for."""
    params = fields.get("sampling_params")
    each = params if isinstance(params, list) else [params]
    samples = max((_samples(one) for one in each), default=1)
    prompts = _prompts(fields)
    if prompts * samples > places:
        raise InvalidRequest(
            f"{prompts} prompts with n={samples}: wanted at most {places} answers in one request, "
            "as many as may run and wait here (PD_MAX_INFLIGHT, PD_MAX_QUEUE)"
        )
    return prompts * samples


def _samples(params: Any) -> int:
    count = as_number(params.get("n")) if isinstance(params, dict) else 1
    return count if type(count) is int and count > 0 else 1


def _prompts(fields: Mapping[str, Any]) -> int:
    text, ids = fields.get("text"), fields.get("input_ids")
    if isinstance(text, list):
        return len(text)
    many = isinstance(ids, list) and bool(ids) and isinstance(ids[0], list)
    return len(ids) if isinstance(ids, list) and many else 1


def _of_each_prompt(bound: Bound, value: Any) -> list[Any]:
    """Return `value` as a list with one entry a prompt, or with one for all."""
    if not isinstance(value, list) or isinstance(bound, Unset):
        return [value]
    if isinstance(bound, TokenIds) and not any(isinstance(one, list) for one in value):
        return [value]
    return [one for one in value if one is not None]


def _check(name: str, value: Any, bound: Bound, limits: EngineInfo) -> None:
    if expected := bound.expected(value, limits):
        raise InvalidRequest(f"{name}={shown(value)}: wanted {expected}")


def _check_logprobs(fields: Mapping[str, Any], answers: int, limits: EngineInfo) -> None:
    if not fields.get("return_logprob"):
        return
    given = fields.get("top_logprobs_num")
    top = max((n for n in (given if isinstance(given, list) else [given]) if n), default=0)
    tokens = _new_tokens(fields) + _prompt_tokens_told(fields, limits)
    if answers * min(tokens, limits.context_length) * (top + 1) > bodies.MAX_LOGPROBS:
        raise InvalidRequest(
            f"top_logprobs_num={top} for {answers} answers of up to {tokens} tokens: wanted at "
            f"most {bodies.MAX_LOGPROBS} log probabilities in one request"
        )


def _new_tokens(fields: Mapping[str, Any]) -> int:
    params = fields.get("sampling_params")
    each = params if isinstance(params, list) else [params]
    asked = [as_number(p.get("max_new_tokens")) for p in each if isinstance(p, dict)]
    return max((n for n in asked if type(n) is int and n >= 0), default=128)


def _prompt_tokens_told(fields: Mapping[str, Any], limits: EngineInfo) -> int:
    """Return of how many tokens of a prompt the log probabilities may be asked for."""
    starts = fields.get("logprob_start_len")
    asked = [s for s in (starts if isinstance(starts, list) else [starts]) if type(s) is int]
    if not any(start >= 0 for start in asked):
        return 0
    prompts = fields.get("text") or fields.get("input_ids") or ""
    nested = isinstance(prompts, list) and bool(prompts) and not isinstance(prompts[0], int)
    longest = max(map(len, prompts)) if nested else len(prompts)
    return min(longest, limits.context_length)


# --- tokenizing and scoring

_MODEL: dict[str, Bound] = {"model": Text(MAX_LABEL_BYTES)}
_TOKENIZE: dict[str, Bound] = _MODEL | {
    "prompt": _TEXTS,
    "add_special_tokens": Flag(),
    "add_generation_prompt": Flag(),
}
_SCORE: dict[str, Bound] = _MODEL | {
    **dict.fromkeys(
        ("embed_override_token_id", "query_embed_overrides", "item_embed_overrides"), _EMBEDDINGS
    ),
    "score_extraction_token": Unset("only the last position is scored here"),
    "return_pooled_hidden_states": Unset("it is about models with a task-specific head"),
    **dict.fromkeys(("apply_softmax", "return_token_logprobs", "item_first"), Flag()),
    "temperature": Number(0, 1e6, above=True),
}


def check_tokenize(fields: Mapping[str, Any], limits: EngineInfo, places: int) -> None:
    """Raise `InvalidRequest` for more text than is tokenized in one request."""
    _check_table(_TOKENIZE, fields, limits)
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and sum(map(len, prompt)) > MAX_TEXT_BYTES:
        raise InvalidRequest(f"prompt: wanted at most {MAX_TEXT_BYTES} characters in all")
    bodies.check({k: v for k, v in fields.items() if k not in _TOKENIZE}, limits, places)


def check_detokenize(fields: Mapping[str, Any], limits: EngineInfo, _: int) -> None:
    """Raise `InvalidRequest` for token ids outside the vocabulary, or too many."""
    _check_table(_MODEL, fields, limits)
    tokens = fields.get("tokens")
    lists = (
        tokens if isinstance(tokens, list) and any(type(t) is list for t in tokens) else [tokens]
    )
    if not isinstance(tokens, list) or len(lists) > MAX_TEXTS:
        raise InvalidRequest(
            f"tokens={shown(tokens)}: wanted a list of token ids, or at most {MAX_TEXTS} such lists"
        )
    for one in lists:
        _check("tokens", one, TokenIds(MAX_IDS), limits)


def check_score(fields: Mapping[str, Any], limits: EngineInfo, places: int) -> None:
    """Raise `InvalidRequest` for a `/v1/score` body that asks for too much, or in vain."""
    _check_table(_SCORE, fields, limits)
    items, labels = fields.get("items"), fields.get("label_token_ids")
    if isinstance(items, list) and len(items) > places:
        raise InvalidRequest(
            f"{len(items)} items: wanted at most {places}, as many requests as may run and wait "
            "here (PD_MAX_INFLIGHT, PD_MAX_QUEUE)"
        )
    for name, value in (("query", fields.get("query")), ("items", items)):
        for one in value if isinstance(value, list) and name == "items" else [value]:
            bound = TokenIds(INT32_MAX) if isinstance(one, list) else Text(16 * 2**20)
            if one is not None:
                _check(name, one, bound, limits)
    each = labels if isinstance(labels, list) and any(type(x) is list for x in labels) else [labels]
    for one in each:
        if one is not None:
            _check("label_token_ids", one, TokenIds(MAX_TOP_LOGPROBS), limits)


def _check_table(table: Mapping[str, Bound], fields: Mapping[str, Any], limits: EngineInfo) -> None:
    for name, bound in table.items():
        if (value := fields.get(name)) is not None:
            _check(name, value, bound, limits)


CHECKS: dict[str, Callable[[Mapping[str, Any], EngineInfo, int], None]] = {
    "generate": check_generate,
    "tokenize": check_tokenize,
    "detokenize": check_detokenize,
    "score": check_score,
}
