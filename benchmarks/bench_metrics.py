"""What our series cost the front: CPU time for a streamed token, with them and without.

One server process with SGLang's OpenAI classes and scripted engines serves rounds of streams, in
turn with and without anybody who counts; its CPU time is the kernel's, read from outside. Ends with
code 1 above 2 %.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.provenance import conclude, tell
from pd_eagle import demo
from tests.process.server import Server
from tests.scripted import Script

STREAMS = 32
TOKENS = 300
LIMIT_PERCENT = 2.0
#: How often Prometheus asks, by its own default.
SCRAPE_INTERVAL_S = 60.0
#: The first token of a prompt says whether anybody counts.
WITH, WITHOUT = 119, 111
ENGINES = Script(max_total_tokens=10**6)


def cpu_s(pid: int) -> float:
    """Return the CPU time of all threads that a process has now."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


async def stream(port: int, prompt: list[int]) -> int:
    """Return how many tokens one stream brought."""
    asked = {"prompt": prompt, "max_tokens": TOKENS, "stream": True, "ignore_eos": True}
    body = json.dumps({"model": "default", **asked}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
    writer.write(head.encode() + b"connection: close\r\n\r\n" + body)
    answer = await reader.read(-1)
    writer.close()
    if not answer.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"the server answered {answer[:500]!r}")
    return answer.count(b"data: {")


async def measured(server: Server, port: int, kind: int) -> float:
    """Return the front's CPU microseconds for one token of a round."""
    before = cpu_s(server.pid)
    tokens = await asyncio.gather(*(stream(port, [kind, n]) for n in range(STREAMS)))
    used_s = cpu_s(server.pid) - before
    if set(tokens) != {TOKENS}:
        raise RuntimeError(f"{sorted(set(tokens))} tokens came: wanted {TOKENS} each")
    return used_s / (STREAMS * TOKENS) * 1e6


async def scrape_ms(server: Server, times: int) -> float:
    """Return the front's CPU milliseconds for one scrape of our series."""
    before = cpu_s(server.pid)
    for _ in range(times):
        response = await server.request("GET", "/metrics")
        response.raise_for_status()
    return (cpu_s(server.pid) - before) / times * 1e3


async def run(rounds: int, scrapes: int) -> dict[str, Any]:
    settings = {
        "STACK_OPENAI": "benchmarks.switched:SwitchedOpenAI",
        "MODEL_PATH": str(demo.model_dir()),
        "MAX_INFLIGHT": str(STREAMS),
    }
    with tempfile.TemporaryDirectory() as folder:
        async with Server(Path(folder), ENGINES, ENGINES, **settings) as server:
            await server.ready()
            port = int((await server.url()).rpartition(":")[2])
            for kind in (WITH, WITHOUT):  # the first round is slower
                await measured(server, port, kind)
            used: dict[int, list[float]] = {WITH: [], WITHOUT: []}
            for number in range(rounds):
                order = (WITH, WITHOUT) if number % 2 else (WITHOUT, WITH)
                for kind in order:
                    used[kind].append(await measured(server, port, kind))
                tell(f"round {number + 1} of {rounds}: " + described(used))
            return {
                "us_per_token": {"with": used[WITH], "without": used[WITHOUT]},
                "scrape_ms": await scrape_ms(server, scrapes),
            }


def described(used: dict[int, list[float]]) -> str:
    return f"{used[WITH][-1]:.1f} µs with, {used[WITHOUT][-1]:.1f} µs without"


def summary(used: dict[str, list[float]], scrape: float) -> dict[str, Any]:
    percent = [(on / off - 1) * 100 for on, off in zip(used["with"], used["without"], strict=True)]
    low, _, high = statistics.quantiles(percent, n=4)
    medians = {kind: statistics.median(values) for kind, values in used.items()}
    return {
        "rounds": len(percent),
        "tokens_a_round": STREAMS * TOKENS,
        "us_per_token_with": round(medians["with"], 2),
        "us_per_token_without": round(medians["without"], 2),
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
    found = asyncio.run(run(*((20, 20) if arguments.quick else (120, 100))))
    result = summary(found["us_per_token"], found["scrape_ms"])
    wrong = int(result["percent_median"] > LIMIT_PERCENT)
    return conclude("metrics_cost", found | {"summary": result, "wrong": wrong}, arguments)


if __name__ == "__main__":
    sys.exit(main())
