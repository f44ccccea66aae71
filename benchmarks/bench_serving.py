"""Our server and SGLang's own, under load from SGLang's own client, in one run on this machine.

    python -m benchmarks.bench_serving

The same model, the same engine arguments, one system at a time. Every system starts once and serves
all request rates; then the two that the ratios compare start again, in the other order, for
saturation alone. Exits with 1 if a request failed or if two systems gave different answers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.asking import percentiles
from benchmarks.provenance import LOGS, conclude, log_to_file, tell
from benchmarks.systems import (
    ENGINE_ARGS,
    OURS_PD,
    ROUTER,
    SYSTEMS,
    NotStarted,
    Running,
    decided,
)
from pd_eagle import demo

Run = dict[str, Any]

SATURATION = "inf"
# Requests/s, and how many requests: the lowest leaves the engines idle between two requests.
LOADS = {"0.25": 10, "0.5": 16, "1": 24, SATURATION: 32}
QUICK_LOADS = {SATURATION: 8}
PROMPT_TOKENS, NEW_TOKENS = 128, 64
LONGER = "Name three rivers of Europe and say in one sentence where each of them flows."
CLIENT_TIMEOUT_S = 300.0

#: SGLang's histogram of a request's latency by stage (0.5.23).
STAGES = "sglang:per_stage_req_latency_seconds"
TTFT = "ttft_p50_ms"
#: Targets for the ratio of ours to SGLang's servers behind its router.
WANTED = {
    "requests_per_s": ("at least", 1.1),
    TTFT: ("at most", 0.85),
    "ready_s": ("at most", 0.5),
    "private_mib": ("at most", 0.5),
    "shared_out_mib": ("at most", 0.5),
}


def client(url: str, rate: str, requests: int) -> dict[str, Any]:
    """Run SGLang's client against `url`; return the line of JSON that it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.jsonl"
        command = [
            *(sys.executable, "-m", "sglang.benchmark.serving", "--backend", "sglang-oai-chat"),
            *("--base-url", url, "--model", "default", "--tokenizer", str(demo.model_dir())),
            # Lengths are drawn between half of the given length and all of it.
            *("--dataset-name", "random-ids", "--random-range-ratio", "0.5"),
            *("--random-input-len", str(PROMPT_TOKENS), "--random-output-len", str(NEW_TOKENS)),
            *("--request-rate", rate, "--num-prompts", str(requests), "--seed", "7"),
            *("--output-file", str(output), "--output-details", "--disable-tqdm"),
        ]
        done = subprocess.run(
            command,
            cwd=folder,
            # Everything is on disk; without a network the client would retry for a minute.
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=CLIENT_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(
                f"SGLang's client ended with {done.returncode}: {done.stderr[-600:]}"
            )
        line: dict[str, Any] = json.loads(output.read_text().splitlines()[-1])
        return line


def prefill_forwards(url: str) -> tuple[float, float]:
    """Return total seconds and number of the engine's prefill forward passes; zeros if unknown.

    This is the model's share of a TTFT: all systems run the same engine with the same arguments.
    """
    found = {"_sum": 0.0, "_count": 0.0}
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/metrics", timeout=30) as said:
        for family in text_string_to_metric_families(said.read().decode()):
            for sample in family.samples:
                part = sample.name.removeprefix(STAGES)
                if part in found and sample.labels.get("stage") == "prefill_forward":
                    found[part] += sample.value
    return found["_sum"], found["_count"]


def _ms(seconds: list[float]) -> list[float]:
    return [round(1000 * value, 1) for value in seconds]


def measure(system: Running, rate: str, requests: int) -> Run:
    """Offer `requests` to `system` at `rate`; return what the client saw and the CPU it cost."""
    forwards, cpu_s = prefill_forwards(system.url), system.cpu_s()
    line = client(system.url, rate, requests)
    # The client's start and the time after the last answer count too: the system is idle then.
    cpu_s = system.cpu_s() - cpu_s
    run = {
        "rate": rate,
        "requests": requests,
        "completed": line["completed"],
        "seconds": round(line["duration"], 2),
        "requests_per_s": round(line["request_throughput"], 3),
        "tokens_per_s": round(line["output_throughput"], 2),
        "cpu_s_per_1000_tokens": round(1000 * cpu_s / line["total_output_tokens"], 2),
        "prefill_forward_ms": _mean_ms(forwards, prefill_forwards(system.url)),
    }
    raw = _latencies_ms(line)
    run |= {name: percentiles(values) for name, values in raw.items()} | {"raw": raw}
    tell(
        f"{system.name} at {rate}/s: {run['completed']} of {requests}, "
        f"{run['requests_per_s']} requests/s, TTFT {run['ttft_ms']['p50']} ms"
    )
    return run


def _mean_ms(before: tuple[float, float], after: tuple[float, float]) -> float | None:
    seconds, count = after[0] - before[0], after[1] - before[1]
    return round(1000 * seconds / count, 1) if count > 0 else None


def _latencies_ms(line: Run) -> dict[str, list[float]]:
    ttft, gaps = _ms(line["ttfts"]), [_ms(of_one) for of_one in line["itls"]]
    return {
        "ttft_ms": ttft,
        "itl_ms": [gap for of_one in gaps for gap in of_one],
        # The first gap is that between the first and the second token.
        "e2e_ms": [round(t + sum(of_one), 1) for t, of_one in zip(ttft, gaps, strict=True)],
    }


def measure_all(name: str, loads: dict[str, int], number: int) -> Run:
    """Start the system `name`, measure it at every rate of `loads`, stop it."""
    found: Run = {"system": name, "round": number}
    try:
        with Running(name, SYSTEMS[name]()) as system:
            found["ready_s"] = round(system.ready_s, 2)
            found["answer"] = system.first_answer
            # Not compared: in bfloat16 rounding can flip a near tie of the two best tokens.
            found["longer_answer"] = system.ask(LONGER, 32)
            tell(f"{name}: first answer after {found['ready_s']} s")
            found["loads"] = [measure(system, rate, count) for rate, count in loads.items()]
            found["memory_mib"] = system.memory_mib()
            found["processes"] = len(system.processes())
    except NotStarted as error:
        tell(str(error))
        found["not_started"] = str(error)
    return found


def median(runs: list[Run], name: str, *path: str) -> float:
    """Return the median of one figure over the rounds of the system `name`."""
    values = []
    for run in runs:
        if run["system"] == name and "loads" in run:
            found: Any = run
            for step in path:
                found = found[step]
            values.append(float(found))
    return round(statistics.median(values), 3)


def _loads(runs: list[Run], name: str, rate: str) -> list[Run]:
    mine = [run for run in runs if run["system"] == name]
    return [load for run in mine for load in run.get("loads", []) if load["rate"] == rate]


def rows(runs: list[Run]) -> list[Run]:
    """Return a row for each system and rate, the median over rounds where there are several."""
    names = dict.fromkeys(run["system"] for run in runs)
    rates = dict.fromkeys(load["rate"] for run in runs for load in run.get("loads", []))
    return [
        _row(name, rate, found)
        for name in names
        for rate in rates
        if (found := _loads(runs, name, rate))
    ]


def _row(name: str, rate: str, loads: list[Run]) -> Run:
    def middle(what: str, part: str | None = None) -> float:
        values = [load[what][part] if part else load[what] for load in loads]
        return round(float(statistics.median(values)), 3)

    plain = ("requests_per_s", "tokens_per_s", "cpu_s_per_1000_tokens")
    latencies = {
        f"{what}_{part}_ms": middle(f"{what}_ms", part)
        for what in ("ttft", "itl", "e2e")
        for part in ("p50", "p95", "p99")
    }
    forwards = [load["prefill_forward_ms"] for load in loads if load["prefill_forward_ms"]]
    forward = {"prefill_forward_ms": round(statistics.median(forwards), 1) if forwards else None}
    row = {"system": name, "rate": rate} | {what: middle(what) for what in plain}
    return row | forward | latencies


def of_systems(runs: list[Run]) -> list[Run]:
    """Return start-up and memory of each system that started."""
    names = dict.fromkeys(run["system"] for run in runs if "loads" in run)
    return [
        {
            "system": name,
            "ready_s": median(runs, name, "ready_s"),
            "private_mib": median(runs, name, "memory_mib", "uss"),
            "shared_out_mib": median(runs, name, "memory_mib", "pss"),
        }
        for name in names
    ]


def ratios(table: list[Run], systems: list[Run]) -> list[Run]:
    """Compare ours with the router's; nothing if either has not run."""
    at_most: dict[str, Run] = {s["system"]: dict(s) for s in systems}
    for row in table:
        figures = at_most[row["system"]]
        if row["rate"] == SATURATION:
            figures["requests_per_s"] = row["requests_per_s"]
        figures[f"{TTFT} at {row['rate']}"] = row[TTFT]
    if not {OURS_PD, ROUTER} <= at_most.keys():
        return []
    ours, theirs = at_most[OURS_PD], at_most[ROUTER]
    return [
        _ratio(figure, WANTED[name], ours[figure], theirs[figure])
        for name in WANTED
        for figure in ours
        if figure.partition(" at ")[0] == name and figure in theirs
    ]


def _ratio(figure: str, wanted: tuple[str, float], ours: float, theirs: float) -> Run:
    form, limit = wanted
    ratio = ours / theirs
    met = ratio >= limit if form == "at least" else ratio <= limit
    return {
        "figure": figure,
        "ours": ours,
        "router": theirs,
        "ratio": round(ratio, 3),
        "wanted": f"{form} {limit}",
        "met": met,
    }


def wrong(runs: list[Run]) -> int:
    """Return the number of failed requests plus that of systems that answered unlike the first."""
    started = [run for run in runs if "loads" in run]
    loads = [load for run in started for load in run["loads"]]
    failed = sum(int(load["requests"]) - int(load["completed"]) for load in loads)
    unlike = [run for run in started if run["answer"] != started[0]["answer"]]
    return failed + len(unlike)


def summary(runs: list[Run]) -> Run:
    started = [run for run in runs if "loads" in run]
    table, systems = rows(runs), of_systems(runs)
    return {
        "prompt_tokens": [PROMPT_TOKENS // 2, PROMPT_TOKENS],
        "new_tokens": [NEW_TOKENS // 2, NEW_TOKENS],
        "systems": systems,
        "table": table,
        "ratios": ratios(table, systems),
        "not_started": {run["system"]: run["not_started"] for run in runs if run not in started},
        "answers_equal": all(run["answer"] == started[0]["answer"] for run in started),
    }


def bench(loads: dict[str, int], rounds: list[tuple[list[str], dict[str, int]]]) -> dict[str, Any]:
    runs = [
        measure_all(name, of_round, number)
        for number, (names, of_round) in enumerate(rounds)
        for name in names
    ]
    plan = decided(PD_MODE="on").plan
    arguments = {worker.name: _plain(worker) for worker in plan.workers}
    asked = {"loads": loads, "added_engine_args": ENGINE_ARGS, "engine_args": arguments}
    return {"summary": summary(runs), "asked": asked, "runs": runs, "wrong": wrong(runs)}


def _plain(worker: Any) -> dict[str, Any]:
    arguments = decided(PD_MODE="on").engine_args(worker, None)
    return arguments | {"model_path": Path(arguments["model_path"]).name}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run; not kept")
    arguments = parser.parse_args()
    LOGS.mkdir(exist_ok=True)
    log_to_file("bench_serving")
    if arguments.quick:
        result = bench(QUICK_LOADS, [([OURS_PD, ROUTER], QUICK_LOADS)])
    else:
        again = ([ROUTER, OURS_PD], {SATURATION: LOADS[SATURATION]})
        result = bench(LOADS, [(list(SYSTEMS), LOADS), again])
    return conclude("serving", result, arguments)


if __name__ == "__main__":
    sys.exit(main())
