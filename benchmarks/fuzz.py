"""Does any request kill a worker, get a 500 or hang? 50,000 requests over every known field.

`benchmarks.fuzz_client` draws them from the JSON schemas of SGLang's own request classes and
shrinks those that fail. A real server answers them with real prefill and decode engines on the CPU,
on a tiny model. Exits with code 1 on any failure, liveness over 100 ms included.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections import Counter
from concurrent.futures import Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks import fuzz_client
from benchmarks.asking import percentiles
from benchmarks.liveness import Liveness
from benchmarks.provenance import LOGS, conclude, tell
from tests.engine.serving import ServerProcess
from tests.tiny_models import tiny_model

_CONTEXT = 512


def schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON schemas of the request bodies of the routes that are asked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pydantic import TypeAdapter
        from sglang.srt.entrypoints.openai import protocol
        from sglang.srt.managers.io_struct import GenerateReqInput

        return {
            "chat": protocol.ChatCompletionRequest.model_json_schema(),
            "completion": protocol.CompletionRequest.model_json_schema(),
            "generate": TypeAdapter(GenerateReqInput).json_schema(),
            "score": protocol.ScoringRequest.model_json_schema(),
            "tokenize": protocol.TokenizeRequest.model_json_schema(),
            "detokenize": protocol.DetokenizeRequest.model_json_schema(),
        }


def fuzz(arguments: argparse.Namespace) -> dict[str, Any]:
    settings = {"DEVICE": "cpu", "PD_MODE": "on"}
    settings |= {"DISAGG_TRANSFER_BACKEND": arguments.transfer, "REQUEST_TIMEOUT_S": "60"}
    # Else a tiny model's KV pool takes 4,096 at once: answers of one request that fill a minute.
    settings |= {"MAX_INFLIGHT": "128"}
    drawn = schemas()
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model(Path(folder) / "model", context=_CONTEXT)
        with ServerProcess(LOGS / "fuzz.log", MODEL_PATH=str(model), **settings) as server:
            return _measure(server, drawn, arguments, Path(folder))


def _measure(
    server: ServerProcess, drawn: dict[str, Any], arguments: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    began = time.monotonic()
    probe = Liveness(f"{server.url}/health/live")
    with ProcessPoolExecutor(arguments.clients, get_context("spawn")) as pool, probe:
        runs = _submit(pool, server.url, drawn, arguments, folder)
        deaths = _watch(server, runs, folder)
    found = [run.result() for run in runs]
    summary: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1)}
    summary |= _summary(found, server) | {"live_s": percentiles(probe.took)}
    wrong = summary["failures"] + summary["worker_restarts"] + summary["inflight_afterwards"]
    wrong += (max(probe.took) >= 0.1) + (summary["answer_afterwards"] != 200)
    wrong += summary["status_afterwards"] != "ready"
    return {
        "summary": summary,
        "failures": [failure for one in found for failure in one.failures],
        "deaths": deaths,
        "slowest": [one.slowest for one in found],
        "wrong": wrong,
    }


def _submit(
    pool: ProcessPoolExecutor,
    url: str,
    drawn: dict[str, Any],
    arguments: argparse.Namespace,
    folder: Path,
) -> list[Future[fuzz_client.Found]]:
    share = -(-arguments.count // arguments.clients)
    return [
        pool.submit(
            fuzz_client.run,
            url,
            drawn,
            arguments.seed + number,
            share,
            folder / f"inflight-{number}.json",
        )
        for number in range(arguments.clients)
    ]


def _summary(found: list[fuzz_client.Found], server: ServerProcess) -> dict[str, Any]:
    health = server.get("/health")[1]
    status, _ = server.post("/v1/completions", {"prompt": "w1 w2", "max_tokens": 2})
    return {
        "sent": sum(one.sent for one in found),
        "statuses": dict(sum((one.statuses for one in found), Counter())),
        "slowest_answer_s": round(max(one.slowest_s for one in found), 2),
        "failures": sum(len(one.failures) for one in found),
        "worker_restarts": sum(worker["restarts"] for worker in health["workers"]),
        "status_afterwards": health["status"],
        "inflight_afterwards": health["inflight"],
        "answer_afterwards": status,
    }


def _watch(
    server: ServerProcess, runs: list[Future[fuzz_client.Found]], folder: Path
) -> list[dict[str, Any]]:
    """Wait for `runs`; return the requests in flight at each worker restart."""
    deaths: list[dict[str, Any]] = []
    restarts, told = 0, time.monotonic()
    while wait(runs, timeout=1.0).not_done:
        status, health = server.get("/health")
        if not health:
            tell(f"/health: {status}")
            continue
        now = sum(worker["restarts"] for worker in health["workers"])
        if now > restarts or health["status"] != "ready":
            asked = [json.loads(path.read_text() or "[]") for path in folder.glob("inflight-*")]
            errors = [worker["last_error"] for worker in health["workers"]]
            if now > restarts:
                deaths.append({"errors": errors, "asked": asked})
                tell(f"{now} restarts: {errors}")
            restarts = now
        if time.monotonic() - told > 30:
            told = time.monotonic()
            tell(f"{health['status']}, {health['inflight']} open, {now} restarts")
    return deaths


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--clients", type=int, default=4, help="client processes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--transfer", choices=("nixl", "mooncake"), default="nixl")
    parser.add_argument("--quick", action="store_true", help="a smoke run; not kept")
    arguments = parser.parse_args()
    LOGS.mkdir(exist_ok=True)
    name = "fuzz" if arguments.transfer == "nixl" else "fuzz_mooncake"
    return conclude(name, fuzz(arguments), arguments)


if __name__ == "__main__":
    sys.exit(main())
