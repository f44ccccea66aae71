"""What our series cost the front: CPU time for a streamed token, with them and without.

One server process with scripted engines serves rounds of streams, in turn with and without anybody
who counts; its CPU time is the kernel's, read from outside. The OpenAI layer is the tests' small one,
so a token costs the front less here than with SGLang's, and the share of the series is an upper
bound. Ends with code 1 above 2 %.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.provenance import conclude, tell
from pd_eagle.metrics import RequestWatch
from tests.process.server import Server
from tests.scripted import Act, Script, ScriptedOpenAI

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pd_eagle.errors import PdEagleError
    from pd_eagle.service import Service
    from tests.scripted import Body

STREAMS = 32
TOKENS = 500
LIMIT_PERCENT = 2.0
#: How often Prometheus asks, by its own default.
SCRAPE_INTERVAL_S = 60.0
#: The first letter of a prompt says who counts.
WITH, WITHOUT = "w", "o"
ENGINES = Script(max_total_tokens=10**6, context_length=1024, acts={"w": Act(), "o": Act()})


class Unwatched(RequestWatch):
    """Nobody counts."""

    def admitted(self, prompt_tokens: int) -> None: ...
    def phase(self, name: str, seconds: float) -> None: ...
    def aborted(self, cause: str) -> None: ...
    def again(self, how: str, error: PdEagleError) -> None: ...
    def delta(self, tokens: int) -> None: ...
    def finished(self, meta: Mapping[str, Any]) -> None: ...
    def failed(self, error: PdEagleError) -> None: ...
    def end(self) -> None: ...


class SwitchedOpenAI(ScriptedOpenAI):
    """The scripted layer, which switches the series on or off with each request's first letter."""

    def __init__(self, service: Service, engine_args: Mapping[str, Any]) -> None:
        super().__init__(service, engine_args)
        self._begin = {
            WITH: service.metrics.begin,
            WITHOUT: lambda _: Unwatched(service.metrics),
        }

    def parse(self, endpoint: str, body: bytes, http: object) -> Body:
        request = super().parse(endpoint, body, http)
        self._service.begin = self._begin[request.prompt[0]]
        return request


def cpu_s(pid: int) -> float:
    """Return the CPU time of all threads that a process has now."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


async def stream(port: int, prompt: str) -> int:
    """Return how many tokens one stream brought."""
    body = json.dumps({"prompt": prompt, "max_tokens": TOKENS, "stream": True}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
    writer.write(head.encode() + b"connection: close\r\n\r\n" + body)
    answer = await reader.read(-1)
    writer.close()
    return answer.count(b'data: {"text"')


async def measured(server: Server, port: int, kind: str) -> float:
    """Return the front's CPU microseconds for one token of a round."""
    before = cpu_s(server.pid)
    tokens = await asyncio.gather(*(stream(port, f"{kind}{n}") for n in range(STREAMS)))
    used_s = cpu_s(server.pid) - before
    if set(tokens) != {TOKENS}:
        raise RuntimeError(f"{kind}: {sorted(set(tokens))} tokens came: wanted {TOKENS} each")
    return used_s / (STREAMS * TOKENS) * 1e6


async def scrape_ms(server: Server, times: int) -> float:
    """Return the front's CPU milliseconds for one scrape of our series."""
    before = cpu_s(server.pid)
    for _ in range(times):
        response = await server.request("GET", "/metrics")
        response.raise_for_status()
    return (cpu_s(server.pid) - before) / times * 1e3


async def run(rounds: int, scrapes: int) -> dict[str, Any]:
    stack = {"STACK_OPENAI": "benchmarks.bench_metrics:SwitchedOpenAI", "LOG_LEVEL": "INFO"}
    settings = {"MAX_INFLIGHT": str(STREAMS), "MAX_QUEUE": "1000"}
    with tempfile.TemporaryDirectory() as folder:
        async with Server(Path(folder), ENGINES, ENGINES, **stack, **settings) as server:
            await server.ready()
            port = int((await server.url()).rpartition(":")[2])
            for kind in (WITH, WITHOUT):  # the first round is slower
                await measured(server, port, kind)
            used: dict[str, list[float]] = {WITH: [], WITHOUT: []}
            for number in range(rounds):
                order = (WITH, WITHOUT) if number % 2 else (WITHOUT, WITH)
                for kind in order:
                    used[kind].append(await measured(server, port, kind))
                tell(f"round {number + 1} of {rounds}: " + described(used))
            return {"us_per_token": used, "scrape_ms": await scrape_ms(server, scrapes)}


def described(used: dict[str, list[float]]) -> str:
    return f"{used[WITH][-1]:.1f} µs with, {used[WITHOUT][-1]:.1f} µs without"


def summary(used: dict[str, list[float]], scrape: float) -> dict[str, Any]:
    percent = [
        (on / off - 1) * 100 for on, off in zip(used[WITH], used[WITHOUT], strict=True)
    ]
    low, _, high = statistics.quantiles(percent, n=4)
    medians = {kind: statistics.median(values) for kind, values in used.items()}
    return {
        "rounds": len(percent),
        "tokens_a_round": STREAMS * TOKENS,
        "us_per_token_with": round(medians[WITH], 2),
        "us_per_token_without": round(medians[WITHOUT], 2),
        "percent_median": round(statistics.median(percent), 2),
        "percent_quartiles": [round(low, 2), round(high, 2)],
        "percent_all": [round(min(percent), 2), round(max(percent), 2)],
        "limit_percent": LIMIT_PERCENT,
        "scrape_ms": round(scrape, 2),
        "scrape_percent_of_a_core": round(scrape / SCRAPE_INTERVAL_S / 10, 4),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run; not kept")
    arguments = parser.parse_args()
    found = asyncio.run(run(*((4, 20) if arguments.quick else (40, 100))))
    result = summary(found["us_per_token"], found["scrape_ms"])
    wrong = int(result["percent_median"] > LIMIT_PERCENT)
    return conclude("metrics_cost", found | {"summary": result, "wrong": wrong}, arguments)


if __name__ == "__main__":
    sys.exit(main())
