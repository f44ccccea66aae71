"""What metrics cost the front: CPU time per streamed token, with our series and without.

One server process with SGLang's OpenAI classes and scripted engines serves rounds of streams,
alternately with and without metrics; its CPU time is read from the kernel. Rounds of the same kind
differ by more than the metrics cost, so everything is counted ten times and the difference divided
by ten. Two loads: paced, one token per stream every 10 ms as from real engines, and flat out, where
tokens come in batches and each costs least. Exits with code 1 above 2 % in the paced load.
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
from tests.process.scripted_server import Server
from tests.scripted import Act, Script

STREAMS = 32
TOKENS = 150
PAUSE_S = 0.01
LIMIT_PERCENT = 2.0
#: How many times everything is counted in a round with metrics.
TIMES = 10
#: Prometheus' default scrape interval.
SCRAPE_INTERVAL_S = 60.0
#: The first token of a prompt selects the load, and metrics on or off (`switched.py`).
WITH, WITHOUT = {"paced": ord("p"), "flat_out": ord("f")}, {"paced": ord("q"), "flat_out": ord("g")}
ENGINES = Script(
    max_total_tokens=10**6, acts={letter: Act(pause_s=PAUSE_S) for letter in ("p", "q")}
)


def cpu_s(pid: int) -> float:
    """Return the CPU time of all current threads of a process."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


async def stream(port: int, prompt: list[int]) -> int:
    """Run one stream; return the number of its tokens."""
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
    """Run one round; return the front's CPU microseconds per token."""
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


async def compared(server: Server, port: int, load: str, rounds: int) -> dict[str, list[float]]:
    """Return the microseconds per token of each round, with metrics and without."""
    kinds = {"with": WITH[load], "without": WITHOUT[load]}
    used: dict[str, list[float]] = {name: [] for name in kinds}
    for kind in kinds.values():  # warm-up
        await measured(server, port, kind)
    for number in range(rounds):
        for name in sorted(kinds, reverse=bool(number % 2)):
            used[name].append(await measured(server, port, kinds[name]))
        said = ", ".join(f"{values[-1]:.1f} µs {name}" for name, values in used.items())
        tell(f"{load} {number + 1} of {rounds}: {said}")
    return used


async def run(rounds: dict[str, int], scrapes: int) -> dict[str, Any]:
    settings = {
        "STACK_OPENAI": "benchmarks.switched:SwitchedOpenAI",
        "MODEL_PATH": str(demo.model_dir()),
        "MAX_INFLIGHT": str(STREAMS),
    }
    with tempfile.TemporaryDirectory() as folder:
        async with Server(Path(folder), ENGINES, ENGINES, **settings) as server:
            await server.ready()
            port = int((await server.url()).rpartition(":")[2])
            found = {
                load: await compared(server, port, load, count) for load, count in rounds.items()
            }
            return {"us_per_token": found, "scrape_ms": await scrape_ms(server, scrapes)}


def summary(used: dict[str, list[float]]) -> dict[str, Any]:
    pairs = zip(used["with"], used["without"], strict=True)
    percent = [(on / off - 1) * 100 / TIMES for on, off in pairs]
    low, _, high = statistics.quantiles(percent, n=4)
    return {
        "rounds": len(percent),
        "times_counted": TIMES,
        "us_per_token_with": round(statistics.median(used["with"]), 2),
        "us_per_token_without": round(statistics.median(used["without"]), 2),
        "percent_median": round(statistics.median(percent), 2),
        "percent_quartiles": [round(low, 2), round(high, 2)],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run; not kept")
    arguments = parser.parse_args()
    rounds = {"paced": 6, "flat_out": 10} if arguments.quick else {"paced": 40, "flat_out": 60}
    found = asyncio.run(run(rounds, 20 if arguments.quick else 100))
    loads = {load: summary(used) for load, used in found["us_per_token"].items()}
    result = {
        "loads": loads,
        "streams": STREAMS,
        "tokens_a_round": STREAMS * TOKENS,
        "limit_percent": LIMIT_PERCENT,
        "scrape_ms": round(found["scrape_ms"], 2),
        "scrape_percent_of_a_core": round(found["scrape_ms"] / SCRAPE_INTERVAL_S / 10, 4),
    }
    wrong = int(loads["paced"]["percent_median"] > LIMIT_PERCENT)
    return conclude("metrics_cost", found | {"summary": result, "wrong": wrong}, arguments)


if __name__ == "__main__":
    sys.exit(main())
