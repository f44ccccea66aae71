"""Bodies of up to 16 MiB with which a client may try to block the front's event loop.

Knows what is sent and to which path; not how it is answered.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

#: The context and the places of the service that is asked, in tokens and in requests.
CONTEXT, PLACES = 8192, 1280

Body = tuple[str, bytes]
Bodies = dict[str, "Callable[[], Body]"]

_MIB = 2**20
_SIZE = 15 * _MIB
_PROSE = "The quick brown fox, it is said, jumps over 13 lazy dogs. "


def bodies() -> Bodies:
    """Return by name how each path and body is built: together they would take gigabytes."""
    return (
        _one_message()
        | _many_messages()
        | _many_parts()
        | _many_tools()
        | _many_prompts()
        | _many_answers()
        | _log_probabilities()
        | _wrong_values()
        | _programs()
        | _bare_json()
        | _native()
    )


def _chat(**fields: Any) -> Body:
    messages = fields.pop("messages", [{"role": "user", "content": "hello"}])
    body = {"messages": messages, "max_tokens": 4, **fields}
    return "/v1/chat/completions", json.dumps(body, ensure_ascii=False).encode()


def _content(content: Any) -> Body:
    return _chat(messages=[{"role": "user", "content": content}])


def _complete(**fields: Any) -> Body:
    body = {"prompt": "hello", "max_tokens": 4, **fields}
    return "/v1/completions", json.dumps(body, ensure_ascii=False).encode()


def _raw(body: bytes) -> Body:
    return "/v1/completions", body


def _tool(properties: int) -> dict[str, Any]:
    fields = {f"p{i}": {"type": "string", "description": "x"} for i in range(properties)}
    parameters = {"type": "object", "properties": fields}
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


def _nested(levels: int) -> str:
    return '{"type":"array","items":' * levels + "{}" + "}" * levels


def _one_message() -> Bodies:
    return {
        "a chat of 15 MiB of prose": lambda: _content(_PROSE * (_SIZE // len(_PROSE))),
        "a chat of one word of 15 MiB": lambda: _content("a" * _SIZE),
        "a chat of 15 MiB of spaces": lambda: _content(" " * _SIZE),
        "a chat of 15 MiB of emoji": lambda: _content("🦅" * (_SIZE // 4)),
        "a chat of 7 million escaped quotes": lambda: _content('"' * (_SIZE // 2)),
        "a chat that just fits": lambda: _content(_PROSE * (4 * CONTEXT // len(_PROSE))),
    }


def _many_messages() -> Bodies:
    one, wrong = {"role": "user", "content": "x"}, {"role": 1, "content": 2}
    calls = {"role": "assistant", "tool_calls": [{}] * 1024}
    return {
        "300,000 messages": lambda: _chat(messages=[one] * 300_000),
        "4,096 messages": lambda: _chat(messages=[one] * 4096),
        "4,096 wrong messages": lambda: _chat(messages=[wrong] * 4096),
        "1,024 wrong calls": lambda: _chat(messages=[calls]),
    }


def _many_parts() -> Bodies:
    part = {"type": "text", "text": "x"}
    return {
        "200,000 parts": lambda: _content([part] * 200_000),
        "1,024 parts": lambda: _content([part] * 1024),
        "1,024 wrong parts": lambda: _content([{"type": "thinking"}] * 1024),
    }


def _many_tools() -> Bodies:
    return {
        "a tool of 80,000 properties": lambda: _chat(tools=[_tool(80_000)]),
        "a tool of 1,000 properties": lambda: _chat(tools=[_tool(1000)]),
        "500 tools": lambda: _chat(tools=[_tool(6)] * 500),
    }


def _many_prompts() -> Bodies:
    return {
        "200,000 prompts": lambda: _complete(prompt=["a"] * 200_000),
        "7 million token ids": lambda: _complete(prompt=[1] * (_SIZE // 3)),
        "250,000 token ids": lambda: _complete(prompt=[1] * 250_000),
        "250,000 token ids as text": lambda: _complete(prompt=["1"] * 250_000),
        "120,000 prompts of ids": lambda: _complete(prompt=[[1]] * 120_000),
        "a thousand prompts": lambda: _complete(prompt=["a b c"] * 1000),
        "a thousand long prompts": lambda: _complete(prompt=[_PROSE * 200] * 1000),
    }


def _many_answers() -> Bodies:
    return {
        "n of 100,000": lambda: _complete(n=100_000),
        "n of as many as may wait": lambda: _complete(n=PLACES),
        "n of as many, streamed": lambda: _complete(n=PLACES, stream=True),
    }


def _log_probabilities() -> Bodies:
    long = CONTEXT - 64

    def chat(top: int, tokens: int) -> Body:
        return _chat(logprobs=True, top_logprobs=top, max_tokens=tokens)

    return {
        "all log probabilities": lambda: chat(20, long),
        "all log probabilities, completion": lambda: _complete(logprobs=20, max_tokens=long),
        "wide log probabilities": lambda: chat(128, 1000),
        "too many log probabilities": lambda: chat(128, long),
    }


def _wrong_values() -> Bodies:
    return {
        "120,000 wrong token ids": lambda: _complete(prompt=[1] + ["x"] * 120_000),
        "120,000 rooms": lambda: _complete(bootstrap_room=["x"] * 120_000),
        "120,000 prompts of nothing": lambda: _complete(prompt=[None] * 120_000),
        "a seed of 15 million digits": lambda: _chat(seed="9" * _SIZE),
        "a number of 15 million digits": lambda: _raw(
            b'{"prompt":"a","seed":' + b"9" * _SIZE + b"}"
        ),
        "a stop of 15 MiB": lambda: _chat(stop="x" * _SIZE),
        "a bias for a million tokens": lambda: _chat(
            logit_bias={str(i): 1 for i in range(1_000_000)}
        ),
    }


def _programs() -> Bodies:
    def response_format() -> dict[str, Any]:
        schema = _tool(80_000)["function"]["parameters"]
        return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}

    return {
        "a schema 3,000 deep": lambda: _complete(json_schema=_nested(3000)),
        "a schema of 15 MiB": lambda: _complete(json_schema='{"a":"' + "x" * _SIZE + '"}'),
        "a response format of 80,000 properties": lambda: _chat(response_format=response_format()),
        "a regular expression of 15 MiB": lambda: _chat(regex="a?" * (_SIZE // 2)),
        "a grammar of 15 MiB": lambda: _chat(ebnf="a " * (_SIZE // 2)),
        "template arguments of 15 MiB": lambda: _chat(chat_template_kwargs={"x": "y" * _SIZE}),
    }


def _bare_json() -> Bodies:
    def unknown_fields(count: int) -> Body:
        return _chat(**{f"unknown{i}": i for i in range(count)})

    return {
        "15 million brackets": lambda: _raw(b"[" * _SIZE),
        "5 million empty lists": lambda: _raw(b'{"prompt":[' + b"[]," * (_SIZE // 3) + b"[]]}"),
        "a million unknown fields": lambda: unknown_fields(700_000),
        "80,000 unknown fields": lambda: unknown_fields(80_000),
        "15 MiB of nothing": lambda: _raw(b" " * _SIZE),
    }


def _native() -> Bodies:
    def to(path: str, **fields: Any) -> Body:
        return path, json.dumps(fields, ensure_ascii=False).encode()

    samples = {"n": 4096, "max_new_tokens": 4}
    return {
        "200,000 texts": lambda: to("/generate", text=["a"] * 200_000),
        "a thousand texts, 4,096 times": lambda: to(
            "/generate", text=["a"] * 1000, sampling_params=samples
        ),
        "a text of 15 MiB": lambda: to("/generate", text=_PROSE * (_SIZE // len(_PROSE))),
        "a million sampling parameters": lambda: to(
            "/generate", text="a", sampling_params=[{}] * 1_000_000
        ),
        "15 MiB to tokenize": lambda: to("/tokenize", prompt=_PROSE * (_SIZE // len(_PROSE))),
        "250,000 texts to tokenize": lambda: to("/tokenize", prompt=["a"] * 250_000),
        "1 MiB to tokenize": lambda: to("/tokenize", prompt=_PROSE * (_MIB // len(_PROSE))),
        "7 million ids to detokenize": lambda: to("/detokenize", tokens=[1] * (_SIZE // 3)),
        "250,000 ids to detokenize": lambda: to("/detokenize", tokens=[1] * 250_000),
        "120,000 items to score": lambda: to(
            "/v1/score", query="a", items=["b"] * 120_000, label_token_ids=[1]
        ),
        "a thousand items to score": lambda: to(
            "/v1/score", query=_PROSE * 200, items=["b"] * 1000, label_token_ids=[1]
        ),
    }
