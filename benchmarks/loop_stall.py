"""How long does one request of up to 16 MiB block the event loop for all other clients?

The front's own application and SGLang's OpenAI classes, with the embedded model's tokenizer, run
over a service that answers at once, so that no engine's work is measured. A task on the same loop
sleeps for 1 ms repeatedly; the longest it overslept while one hostile request (`hostile_bodies`)
was served is that request's stall. The minimum of several tries counts, since a busy machine only
adds to it. Exits with code 1 if a request stalls the loop for 100 ms.
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

from benchmarks.hostile_bodies import CONTEXT, PLACES, bodies
from benchmarks.provenance import conclude, log_to_file, tell
from pd_eagle import demo
from pd_eagle.http.app import make_app
from pd_eagle.messages import Delta, EngineInfo
from pd_eagle.requests import gate
from pd_eagle.requests.operations import Operations
from pd_eagle.workers import gc_freezing
from tests.asgi import Exchange

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

    from pd_eagle.http.app import FrontProtocol
    from pd_eagle.http.openai_api import OpenAIApi
    from pd_eagle.messages import Request
    from pd_eagle.requests.service import Service

_MIB = 2**20
_CHAT = "/v1/chat/completions"


class AnsweringService:
    """A service that answers every request with a few tokens at once."""

    limits = EngineInfo(1, [2], 65_536, CONTEXT, 49_152)
    places = max_inflight = PLACES
    request_timeout_s = 600.0
    eagle_rules = None

    def check(self, request: Request) -> int:
        return gate.check(request, self.limits)

    async def stream(
        self, request: Request, group: object, *, patient: bool
    ) -> AsyncGenerator[Delta, None]:
        self.check(request)
        await asyncio.sleep(0)
        count = request.sampling_params.get("max_new_tokens") or 4
        for number, delta in enumerate(_deltas(request, count), 1):
            yield delta
            if number % 16 == 0:
                await asyncio.sleep(0)


def _deltas(request: Request, count: int) -> Iterator[Delta]:
    """Yield `count` tokens as an engine reports them, with log probabilities where asked for."""
    top = range(request.options.top_logprobs_num)
    for number in range(1, count + 1):
        meta: dict[str, Any] = {"completion_tokens": number, "prompt_tokens": 1}
        meta |= {"id": request.rid, "cached_tokens": 0, "weight_version": "default"}
        if request.options.return_logprob:
            meta["output_token_logprobs"] = [[-0.5, 5, " a"]]
            meta["output_top_logprobs"] = [[[-1.0 - i, i, f" t{i}"] for i in top]]
            meta["output_token_logprobs_length"] = number
            asked = request.options.token_ids_logprob or ()
            meta["output_token_ids_logprobs"] = [[[-2.0, i, None] for i in asked]]
        last = number == count
        meta["finish_reason"] = {"type": "length", "length": count} if last else None
        yield Delta(request.rid, " a", [5], meta, last)


class _Front:
    """What the routes need of a front."""

    api_key = admin_api_key = None
    keep_alive_s = 0.0
    max_body_memory_bytes = 2**30

    def __init__(self, openai: OpenAIApi, operations: Operations) -> None:
        self.api = openai
        self.operations = operations

    def admit(self, client: str) -> nullcontext[None]:
        return nullcontext()


class _Probe:
    """Sleeps for 1 ms repeatedly on the running loop; `longest_s` is how much it overslept."""

    def __init__(self) -> None:
        self.longest_s = 0.0

    async def run(self) -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            self.longest_s = max(self.longest_s, time.perf_counter() - began - 0.001)


async def stall(app: Any, path: str, body: bytes) -> tuple[float, float, int]:
    """Return the longest stall and the whole answer's time, both in s, and the status."""
    parts = [body[at : at + 2**16] for at in range(0, len(body), 2**16)]
    probe = _Probe()
    probing = asyncio.create_task(probe.run())
    await asyncio.sleep(0.05)
    began, probe.longest_s = time.perf_counter(), 0.0
    headers = {"content-type": "application/json"}
    async with Exchange(app, "POST", path, body=parts, headers=headers) as exchange:
        answer = await exchange.answer()
    took = time.perf_counter() - began
    await asyncio.sleep(0.02)
    probing.cancel()
    return probe.longest_s, took, answer.status


async def small_beside_large(app: Any) -> dict[str, float]:
    """Return how long a small chat takes beside four of 12 MiB, and how long those take, in s."""
    prose = "It is a long text. " * (12 * _MIB // 19)
    large = json.dumps({"messages": [{"role": "user", "content": prose}]}).encode()
    small = b'{"messages":[{"role":"user","content":"hello"}],"max_tokens":4}'

    async def took(body: bytes) -> float:
        return (await stall(app, _CHAT, body))[1]

    four = [asyncio.create_task(took(large)) for _ in range(4)]
    await asyncio.sleep(0.1)  # the first is being read
    small_s = await took(small)
    still_open = sum(not task.done() for task in four)
    large_s = await asyncio.gather(*four)
    return {"honest_s": small_s, "large_s": max(large_s), "large_still_open": still_open}


def _app() -> Any:
    """Return the front's application over a service that answers at once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pd_eagle.http.openai_api import OpenAIApi

    model = str(demo.model_dir())
    engine_args = {"model_path": model, "device": "cpu", "context_length": CONTEXT}
    service = cast("Service", AnsweringService())
    front = _Front(OpenAIApi(service, engine_args), Operations(service))
    app = make_app(cast("FrontProtocol", front))
    gc_freezing.freeze()  # as the server does
    return app


async def _row(app: Any, make: Callable[[], tuple[str, bytes]], tries: int) -> dict[str, Any]:
    path, body = make()
    runs = [await stall(app, path, body) for _ in range(tries)]
    return {
        "bytes": len(body),
        "status": runs[0][2],
        "stall_ms": round(min(run[0] for run in runs) * 1000, 1),
        "stalls_ms": [round(run[0] * 1000, 1) for run in runs],
        "answer_s": round(min(run[1] for run in runs), 3),
    }


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    app = _app()
    await stall(app, _CHAT, b'{"messages":[{"role":"user","content":"x"}]}')  # warm-up
    idle_s = (await stall(app, "/v1/completions", b"{}"))[0]
    rows = {}
    for name, make in bodies().items():
        if not arguments.only or name in arguments.only:
            rows[name] = await _row(app, make, 1 if arguments.quick else 3)
            tell(f"{name}: {rows[name]}")
    worst = max(rows, key=lambda name: float(rows[name]["stall_ms"]))
    summary = {
        "requests": len(rows),
        "longest_stall_ms": rows[worst]["stall_ms"],
        "of": worst,
        "without_a_request_ms": round(idle_s * 1000, 1),
        "a_chat_beside_four_of_12_mib": await small_beside_large(app),
        "statuses": {name: row["status"] for name, row in rows.items()},
    }
    wrong = sum(row["status"] not in (200, 400, 413) for row in rows.values())
    wrong += summary["longest_stall_ms"] >= arguments.allowed_ms
    return {"summary": summary, "rows": rows, "wrong": wrong}


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
