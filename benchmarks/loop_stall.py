"""How long does one request of up to 16 MiB keep the event loop from everybody else?

The front's own application and SGLang's OpenAI classes, with the embedded model's tokenizer, over a
service that answers at once, so that no engine's work is among it. A task of the same loop sleeps
for a millisecond again and again: the longest it overslept, while one hostile request was answered,
is that request's stall; the least of some tries, since a busy machine adds to it. Ends with code 1
if one stalls the loop for 100 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
import warnings
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, cast

from benchmarks.provenance import conclude, log_to_file, tell
from pd_eagle import demo
from pd_eagle.http.app import make_app
from pd_eagle.messages import Delta, EngineInfo
from pd_eagle.requests import gate
from pd_eagle.workers import gc_freezing
from tests.asgi import Exchange

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from pd_eagle.http.app import Front
    from pd_eagle.http.openai_api import OpenAIApi
    from pd_eagle.messages import Request
    from pd_eagle.requests.service import Service

_MIB = 2**20
_BODY = 15 * _MIB
_CONTEXT = 8192
_PLACES = 1280


class AnsweringService:
    """A service that answers every request with a few tokens at once."""

    limits = EngineInfo(1, [2], 65_536, _CONTEXT - 1, _CONTEXT, 49_152)
    places = max_inflight = _PLACES
    request_timeout_s = 600.0
    eagle_rules = None

    def check(self, request: Request) -> int:
        return gate.check(request, self.limits)

    async def stream(
        self, request: Request, group: object, *, patient: bool
    ) -> AsyncGenerator[Delta, None]:
        self.check(request)
        await asyncio.sleep(0)
        many, top = request.sampling_params.get("max_new_tokens") or 4, []
        if request.options.return_logprob:
            top = [[-1.0 - i, i, None] for i in range(request.options.top_logprobs_num)]
        for number in range(1, many + 1):
            meta: dict[str, Any] = {"completion_tokens": number, "prompt_tokens": 1}
            meta |= {"id": request.rid, "cached_tokens": 0, "weight_version": "default"}
            if request.options.return_logprob:
                meta["output_token_logprobs"] = [[-0.5, 5, " a"]]
                meta["output_top_logprobs"] = [[[p, i, f" t{i}"] for p, i, _ in top]]
                meta["output_token_logprobs_length"] = number
            last = number == many
            meta["finish_reason"] = {"type": "length", "length": many} if last else None
            yield Delta(request.rid, " a", [5], meta, last)
            if number % 16 == 0:
                await asyncio.sleep(0)


class _Front:
    """What the routes need of a front."""

    api_keys = api_key = None

    def __init__(self, openai: OpenAIApi) -> None:
        self.openai = openai

    def door(self, client: str) -> nullcontext[None]:
        return nullcontext()


def bodies() -> dict[str, Callable[[], tuple[str, bytes]]]:
    """Return what a client may send to hold the loop up: names, and how each is made."""

    def chat(**fields: Any) -> tuple[str, bytes]:
        messages = fields.pop("messages", [{"role": "user", "content": "hello"}])
        body = {"messages": messages, "max_tokens": 4, **fields}
        return "/v1/chat/completions", json.dumps(body, ensure_ascii=False).encode()

    def complete(**fields: Any) -> tuple[str, bytes]:
        body = {"prompt": "hello", "max_tokens": 4, **fields}
        return "/v1/completions", json.dumps(body, ensure_ascii=False).encode()

    def said(content: Any, **fields: Any) -> tuple[str, bytes]:
        return chat(messages=[{"role": "user", "content": content}], **fields)

    def tool(properties: int) -> dict[str, Any]:
        fields = {f"p{i}": {"type": "string", "description": "x"} for i in range(properties)}
        parameters = {"type": "object", "properties": fields}
        return {"type": "function", "function": {"name": "f", "parameters": parameters}}

    def nested(levels: int) -> str:
        return '{"type":"array","items":' * levels + "{}" + "}" * levels

    prose = "The quick brown fox, it is said, jumps over 13 lazy dogs. "
    return {
        "a chat of 15 MiB of prose": lambda: said(prose * (_BODY // len(prose))),
        "a chat of one word of 15 MiB": lambda: said("a" * _BODY),
        "a chat of 15 MiB of spaces": lambda: said(" " * _BODY),
        "a chat of 15 MiB of emoji": lambda: said("🦅" * (_BODY // 4)),
        "a chat of 7 million escaped quotes": lambda: said('"' * (_BODY // 2)),
        "a chat that just fits": lambda: said(prose * (4 * _CONTEXT // len(prose))),
        "300,000 messages": lambda: chat(messages=[{"role": "user", "content": "x"}] * 300_000),
        "4,096 messages": lambda: chat(messages=[{"role": "user", "content": "x"}] * 4096),
        "4,096 wrong messages": lambda: chat(messages=[{"role": 1, "content": 2}] * 4096),
        "200,000 parts": lambda: said([{"type": "text", "text": "x"}] * 200_000),
        "1,024 parts": lambda: said([{"type": "text", "text": "x"}] * 1024),
        "1,024 wrong parts": lambda: said([{"type": "thinking"}] * 1024),
        "1,024 wrong calls": lambda: chat(
            messages=[{"role": "assistant", "tool_calls": [{}] * 1024}]
        ),
        "a tool of 80,000 properties": lambda: chat(tools=[tool(80_000)]),
        "a tool of 1,000 properties": lambda: chat(tools=[tool(1000)]),
        "500 tools": lambda: chat(tools=[tool(6)] * 500),
        "200,000 prompts": lambda: complete(prompt=["a"] * 200_000),
        "7 million token ids": lambda: complete(prompt=[1] * (_BODY // 3)),
        "250,000 token ids": lambda: complete(prompt=[1] * 250_000),
        "250,000 token ids as text": lambda: complete(prompt=["1"] * 250_000),
        "120,000 prompts of ids": lambda: complete(prompt=[[1]] * 120_000),
        "a thousand prompts": lambda: complete(prompt=["a b c"] * 1000),
        "a thousand long prompts": lambda: complete(prompt=[prose * 200] * 1000),
        "n of 100,000": lambda: complete(n=100_000),
        "n of as many as may wait": lambda: complete(n=_PLACES),
        "n of as many, streamed": lambda: complete(n=_PLACES, stream=True),
        "all log probabilities": lambda: chat(
            logprobs=True, top_logprobs=20, max_tokens=_CONTEXT - 64
        ),
        "all log probabilities, completion": lambda: complete(
            logprobs=20, max_tokens=_CONTEXT - 64
        ),
        "wide log probabilities": lambda: chat(logprobs=True, top_logprobs=128, max_tokens=1000),
        "too many log probabilities": lambda: chat(
            logprobs=True, top_logprobs=128, max_tokens=_CONTEXT - 64
        ),
        "120,000 wrong token ids": lambda: complete(prompt=[1] + ["x"] * 120_000),
        "120,000 rooms": lambda: complete(bootstrap_room=["x"] * 120_000),
        "120,000 prompts of nothing": lambda: complete(prompt=[None] * 120_000),
        "a seed of 15 million digits": lambda: chat(seed="9" * _BODY),
        "a number of 15 million digits": lambda: (
            "/v1/completions", b'{"prompt":"a","seed":' + b"9" * _BODY + b"}",
        ),
        "a stop of 15 MiB": lambda: chat(stop="x" * _BODY),
        "a bias for a million tokens": lambda: chat(
            logit_bias={str(i): 1 for i in range(1_000_000)}
        ),
        "a schema 3,000 deep": lambda: complete(json_schema=nested(3000)),
        "a schema of 15 MiB": lambda: complete(json_schema='{"a":"' + "x" * _BODY + '"}'),
        "a response format of 80,000 properties": lambda: chat(
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": tool(80_000)["function"]["parameters"]},
            }
        ),
        "a regular expression of 15 MiB": lambda: chat(regex="a?" * (_BODY // 2)),
        "a grammar of 15 MiB": lambda: chat(ebnf="a " * (_BODY // 2)),
        "template arguments of 15 MiB": lambda: chat(chat_template_kwargs={"x": "y" * _BODY}),
        "15 million brackets": lambda: ("/v1/completions", b"[" * _BODY),
        "5 million empty lists": lambda: (
            "/v1/completions", b'{"prompt":[' + b"[]," * (_BODY // 3) + b"[]]}",
        ),
        "a million unknown fields": lambda: chat(**{f"unknown{i}": i for i in range(700_000)}),
        "80,000 unknown fields": lambda: chat(**{f"unknown{i}": i for i in range(80_000)}),
        "15 MiB of nothing": lambda: ("/v1/completions", b" " * _BODY),
    }  # fmt: skip


async def stall(app: Any, path: str, body: bytes) -> tuple[float, float, int]:
    """Return the longest stall and the whole answer's time, both in s, and the status."""
    longest = 0.0
    parts = [body[at : at + 2**16] for at in range(0, len(body), 2**16)]

    async def probe() -> None:
        nonlocal longest
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - began - 0.001)

    probing = asyncio.create_task(probe())
    await asyncio.sleep(0.05)
    began, longest = time.perf_counter(), 0.0
    headers = {"content-type": "application/json"}
    async with Exchange(app, "POST", path, body=parts, headers=headers) as exchange:
        answer = await exchange.answer()
    took = time.perf_counter() - began
    await asyncio.sleep(0.02)
    probing.cancel()
    return longest, took, answer.status


async def honest_beside_large(app: Any) -> dict[str, float]:
    """Return how long an honest chat takes beside four of 12 MiB, and how long those take, in s."""
    prose = "It is a long text. " * (12 * _MIB // 19)
    large = json.dumps({"messages": [{"role": "user", "content": prose}]}).encode()
    small = b'{"messages":[{"role":"user","content":"hello"}],"max_tokens":4}'
    path = "/v1/chat/completions"

    async def took(body: bytes) -> float:
        return (await stall(app, path, body))[1]

    four = [asyncio.create_task(took(large)) for _ in range(4)]
    await asyncio.sleep(0.1)  # the first is being read
    honest_s = await took(small)
    still_open = sum(not task.done() for task in four)
    large_s = await asyncio.gather(*four)
    return {"honest_s": honest_s, "large_s": max(large_s), "large_still_open": still_open}


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pd_eagle.http.openai_api import OpenAIApi

    model = str(demo.model_dir())
    engine_args = {"model_path": model, "device": "cpu", "context_length": _CONTEXT}
    openai = OpenAIApi(cast("Service", AnsweringService()), engine_args)
    app = make_app(cast("Front", _Front(openai)))
    gc_freezing.settle()  # as the server does
    await stall(app, "/v1/chat/completions", b'{"messages":[{"role":"user","content":"x"}]}')
    idle_s = (await stall(app, "/v1/completions", b"{}"))[0]
    rows = {}
    for name, make in bodies().items():
        if arguments.only and name not in arguments.only:
            continue
        path, body = make()
        tries = [await stall(app, path, body) for _ in range(1 if arguments.quick else 3)]
        rows[name] = {
            "bytes": len(body),
            "status": tries[0][2],
            "stall_ms": round(min(one[0] for one in tries) * 1000, 1),
            "stalls_ms": [round(one[0] * 1000, 1) for one in tries],
            "answer_s": round(min(one[1] for one in tries), 3),
        }
        tell(f"{name}: {rows[name]}")
        del body
    beside = await honest_beside_large(app)
    worst = max(rows, key=lambda name: float(str(rows[name]["stall_ms"])))
    longest_ms = float(str(rows[worst]["stall_ms"]))
    return {
        "summary": {
            "requests": len(rows),
            "longest_stall_ms": longest_ms,
            "of": worst,
            "without_a_request_ms": round(idle_s * 1000, 1),
            "a_chat_beside_four_of_12_mib": beside,
            "statuses": {name: row["status"] for name, row in rows.items()},
        },
        "rows": rows,
        "wrong": (longest_ms >= arguments.allowed_ms)
        + sum(row["status"] not in (200, 400, 413) for row in rows.values()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one try each; not kept")
    parser.add_argument("--only", nargs="+", help="the rows of these names")
    parser.add_argument("--allowed-ms", type=float, default=100.0)
    arguments = parser.parse_args()
    log_to_file("loop_stall")
    return conclude("loop_stall", asyncio.run(measure(arguments)), arguments)


if __name__ == "__main__":
    sys.exit(main())
