"""Builds responses that are not streamed with SGLang's serving classes; large ones in small steps.

Pydantic holds the GIL while it serializes, and so does the garbage collector while it traverses the
result: a million log probabilities at once would block other threads for seconds. It knows nothing
of HTTP.
"""

from __future__ import annotations

import time
from typing import Any, Literal

import orjson

#: The endpoint that a request came to.
OpenAIEndpoint = Literal["chat", "completion", "messages", "count_tokens", "responses"]
NativeEndpoint = Literal["generate", "vertex", "tokenize", "detokenize", "score"]
Endpoint = OpenAIEndpoint | NativeEndpoint
Results = list[dict[str, Any]]

#: Responses with up to so many values take a few milliseconds.
_LARGE_VALUES = 1024
_LOGPROBS = ("output_token_logprobs", "output_top_logprobs")
_TOKENS_A_STEP = 16


def is_large(results: Results) -> bool:
    """Tell whether a response takes too long to be built on the event loop."""
    size = 0
    for result in results:
        meta = result["meta_info"]
        size += 16 + len(meta.get("output_token_logprobs") or ())
        for name in ("output_top_logprobs", "input_top_logprobs"):
            size += sum(len(row or ()) for row in meta.get(name) or ())
    return size > _LARGE_VALUES


def build(serving: Any, endpoint: Endpoint, request: Any, results: Results) -> bytes:
    """Return the response to `request` as SGLang's class `serving` (0.5.23) builds it."""
    if request.logprobs and is_large(results):
        return (_large_chat if endpoint == "chat" else _large_completion)(serving, request, results)
    response = _response(serving, endpoint, request, results)
    body: str = response.model_dump_json()
    return body.encode()


def _response(serving: Any, endpoint: Endpoint, request: Any, results: Results) -> Any:
    make = "_build_chat_response" if endpoint == "chat" else "_build_completion_response"
    return getattr(serving, make)(request, results, int(time.time()))


def _large_chat(serving: Any, request: Any, results: Results) -> bytes:
    nothing: dict[str, list[Any]] = {name: [] for name in _LOGPROBS}
    without = [result | {"meta_info": result["meta_info"] | nothing} for result in results]
    fields = _response(serving, "chat", request, without).model_dump(mode="json")
    for choice, result in zip(fields["choices"], results, strict=True):
        choice["logprobs"]["content"] = _chat_logprobs(serving, result["meta_info"])
        if request.return_meta_info:
            choice["meta_info"] = result["meta_info"]
    return orjson.dumps(fields)


def _chat_logprobs(serving: Any, meta: dict[str, Any]) -> list[orjson.Fragment]:
    tokens, top = (meta.get(name) or [] for name in _LOGPROBS)
    pieces: list[orjson.Fragment] = []
    for at in range(0, len(tokens), _TOKENS_A_STEP):
        step = slice(at, at + _TOKENS_A_STEP)
        found = serving._build_token_logprobs_from_raw(tokens[step], top[step])
        pieces += [orjson.Fragment(token.model_dump_json()) for token in found]
    return pieces


def _large_completion(serving: Any, request: Any, results: Results) -> bytes:
    response = _response(serving, "completion", request, results)
    top = [choice.logprobs.top_logprobs for choice in response.choices]
    for choice in response.choices:
        choice.logprobs.top_logprobs = []
    fields = response.model_dump(mode="json")
    for choice, rows in zip(fields["choices"], top, strict=True):
        choice["logprobs"]["top_logprobs"] = [orjson.Fragment(orjson.dumps(row)) for row in rows]
    return orjson.dumps(fields)
