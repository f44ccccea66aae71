"""CPU cost of the front per streamed token, compared with SGLang's servers and routers.

The same scripted scheduler (`scripted_sglang.py`) stands behind this project's server, SGLang's own
HTTP server, and two of those (prefill, decode) behind `sglang-router` and behind its mini-lb. The
streams of a cohort run in step, so every token is an event of its own; see `front_load.py`. The
sides take turns within one run: what carries over to other machines are the ratios.

Counted as front, by the CPU clock of each process: ours, the server's process; SGLang's, the
HTTP server's process, which holds its tokenizer manager; the routers', the router and both HTTP
servers. Ours has SGLang's tokenizer manager in its workers: they are given beside it, and added up.
Schedulers, detokenizers and the load generator are not counted. `--before COMMIT` adds this
project at another commit as one more side: what a change brought.

Answers have 64 tokens, so a token bears a 64th of what its request costs; answers of 256 beside
them tell the two apart.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.asking import percentiles
from benchmarks.front_sides import BEFORE, OURS, PEERS, PROMPT, Side, Stage
from benchmarks.provenance import LOGS, ROOT, conclude, tell

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Streams at once → cohorts one after another in one round.
LEVELS = {1: 8, 16: 8, 128: 2, 1000: 1}
QUICK_LEVELS = {1: 1, 16: 2, 128: 1}
TOKENS, QUICK_TOKENS = 64, 16
#: At one level, longer answers too.
LONGER, LONGER_AT = 4, 128
PROFILED, PROFILE_S = (16, 128, 1000), 8
#: Largest ratio of a token's cost at 1,000 streams to that at 16.
FLAT_WITHIN = 1.3


def cpu_s(pids: list[int]) -> float:
    """Return the CPU time that these processes have used, all their threads, to the nanosecond."""
    # The id of a process's CPU clock, computed as clock_getcpuclockid(3) does.
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


# --- measuring


def cohort(side: Side, streams: int, tokens: int) -> dict[str, Any]:
    """Run one cohort in a process of its own; return what it measured."""
    wanted = {"url": side.url, "credits": str(side.credits), "streams": streams, "tokens": tokens}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.front_load", json.dumps(wanted | {"prompt": PROMPT})],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{side.name}, {streams} streams:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def one_round(side: Side, streams: int, cohorts: int, tokens: int) -> dict[str, Any]:
    """Return the costs of some cohorts of `side`, one after another."""
    front, workers = cpu_s(side.front), cpu_s(side.workers)
    runs = [cohort(side, streams, tokens) for _ in range(cohorts)]
    all_tokens, wall_s = cohorts * streams * tokens, sum(run["wall_s"] for run in runs)
    front_s, workers_s = cpu_s(side.front) - front, cpu_s(side.workers) - workers
    token_ms = percentiles([1e3 * s for run in runs for s in run["token_s"]])
    return {
        "side": side.name,
        "streams": streams,
        "tokens_a_stream": tokens,
        "tokens": all_tokens,
        "wall_s": round(wall_s, 4),
        "front_us_per_token": round(1e6 * front_s / all_tokens, 2),
        "workers_us_per_token": round(1e6 * workers_s / all_tokens, 2),
        "generator_us_per_token": round(
            1e6 * sum(run["generator_cpu_s"] for run in runs) / all_tokens, 2
        ),
        "tokens_per_s": round(all_tokens / wall_s, 1),
        "requests_per_s": round(cohorts * streams / wall_s, 2),
        "first_token_ms": round(1e3 * statistics.median(r["first_token_s"] for r in runs), 2),
        "token_ms": token_ms,
    }


def measure(
    sides: list[Side], levels: dict[int, int], rounds: int, tokens: int
) -> Iterator[dict[str, Any]]:
    """Yield rounds in which all sides take turns; the first cohort of each is a warm-up."""
    for streams, cohorts in levels.items():
        for side in sides:
            cohort(side, streams, tokens)
        for number in range(rounds):
            turn = number % len(sides)
            for side in sides[turn:] + sides[:turn]:
                row = {"round": number} | one_round(side, streams, cohorts, tokens)
                tell(
                    f"{streams:5} streams of {tokens} tokens, round {number + 1} of {rounds}, "
                    f"{side.name:13} {row['front_us_per_token']:7} µs a token, "
                    f"{row['tokens_per_s']:8} tokens/s"
                )
                yield row


def tell_apart(short: list[dict[str, Any]], longer: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Split a front's cost into cost per token and cost per request.

    Solved from two answer lengths: medians over the rounds, in microseconds, and medians of the
    rounds' own ratios of ours to each peer.
    """
    lines = []
    ours = _request_and_token(short, longer, OURS)
    for name in dict.fromkeys(row["side"] for row in longer):
        line = {"side": name}
        for part, values in _request_and_token(short, longer, name).items():
            line[f"{part}_us"] = round(statistics.median(values), 2)
            if name != OURS:
                ratios = (mine / theirs for mine, theirs in zip(ours[part], values, strict=True))
                line[f"ours_to_this_{part}"] = round(statistics.median(ratios), 3)
        lines.append(line)
    return lines


def _request_and_token(
    short: list[dict[str, Any]], longer: list[dict[str, Any]], side: str
) -> dict[str, list[float]]:
    costs: dict[str, list[float]] = {"token": [], "request": []}
    streams = longer[0]["streams"]
    both = zip(_of(short, streams, side), _of(longer, streams, side), strict=True)
    for few, many in both:
        tokens, more = few["tokens_a_stream"], many["tokens_a_stream"]
        whole = tokens * few["front_us_per_token"]
        token_us = (more * many["front_us_per_token"] - whole) / (more - tokens)
        costs["token"].append(token_us)
        costs["request"].append(whole - tokens * token_us)
    return costs


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return medians over rounds, and medians of the rounds' own ratios of ours to each peer."""
    table = []
    for streams in dict.fromkeys(row["streams"] for row in rows):
        ours = _of(rows, streams, OURS)
        for name in dict.fromkeys(row["side"] for row in rows):
            mine = _of(rows, streams, name)
            line = {"streams": streams, "side": name} | _medians(mine)
            if name != OURS:
                line |= _ratios(ours, mine)
            table.append(line)
    front = {row["streams"]: row["front_us_per_token"] for row in table if row["side"] == OURS}
    at_most = max(front)
    summary: dict[str, Any] = {"table": table}
    if at_most > 16 in front:
        ratio = round(front[at_most] / front[16], 3)
        summary["flat"] = {
            "streams": [16, at_most],
            "ratio": ratio,
            "wanted_at_most": FLAT_WITHIN,
            "met": ratio <= FLAT_WITHIN,
        }
    return summary


def _of(rows: list[dict[str, Any]], streams: int, side: str) -> list[dict[str, Any]]:
    found = [row for row in rows if (row["streams"], row["side"]) == (streams, side)]
    return sorted(found, key=lambda row: int(row["round"]))


def _medians(rows: list[dict[str, Any]]) -> dict[str, float]:
    names = (
        "front_us_per_token",
        "workers_us_per_token",
        "generator_us_per_token",
        "tokens_per_s",
        "requests_per_s",
        "first_token_ms",
    )
    found = {name: round(statistics.median(row[name] for row in rows), 2) for name in names}
    for quantile in ("p50", "p99"):
        values = [row["token_ms"][quantile] for row in rows]
        found[f"token_ms_{quantile}"] = round(statistics.median(values), 3)
    return found


def _ratios(ours: list[dict[str, Any]], peer: list[dict[str, Any]]) -> dict[str, float]:
    def cost(row: dict[str, Any], *, whole: bool) -> float:
        workers = row["workers_us_per_token"] if whole else 0.0
        return float(row["front_us_per_token"] + workers)

    return {
        name: round(
            statistics.median(
                # A peer's tokenizer manager is in its front; another checkout's is not.
                cost(mine, whole=whole) / cost(theirs, whole=whole or theirs["side"] != BEFORE)
                for mine, theirs in zip(ours, peer, strict=True)
            ),
            3,
        )
        for name, whole in (("ours_to_this", False), ("ours_with_workers_to_this", True))
    }


# --- profile of our front


def profile(side: Side, row: dict[str, Any], seconds: int, tokens: int) -> dict[str, Any]:
    """Return the functions in which our front spends its time, sampled by py-spy.

    As many streams run as in `row`, and its measured cost is divided among the functions. Only
    threads that hold the GIL are sampled.
    """
    spy = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if spy is None:
        return {"left_out": "py-spy is not installed"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile"
        sampled = ["-p", str(side.front[0]), "-d", str(seconds), "-r", "250", "--gil"]
        recording = subprocess.Popen(
            [spy, "record", *sampled, "--format", "raw", "-o", str(path)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while recording.poll() is None:
            cohort(side, row["streams"], tokens)
        if recording.returncode or not path.exists():
            return {"left_out": f"py-spy ended with {recording.returncode}"}
        return {"streams": row["streams"]} | _shares(path.read_text(), row["front_us_per_token"])


def _shares(stacks: str, us_per_token: float) -> dict[str, Any]:
    own: Counter[str] = Counter()
    with_callees: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, samples = line.rpartition(" ")
        # "function (file:line)": lines do not matter.
        frames = [re.sub(r":\d+\)$", ")", frame) for frame in stack.split(";")]
        own[frames[-1]] += int(samples)
        with_callees.update(dict.fromkeys(frames, int(samples)))
    samples_in_all = sum(own.values())

    def top(counted: Counter[str], count: int, whole: float = 1.0) -> dict[str, float]:
        share = whole / samples_in_all
        return {name: round(n * share, 3) for name, n in counted.most_common(count)}

    return {
        "samples": samples_in_all,
        "own_us_per_token": top(own, 40, us_per_token),
        "share_with_callees": top(with_callees, 40),
    }


def bench(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure all sides; return the result."""
    tokens = QUICK_TOKENS if arguments.quick else TOKENS
    LOGS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, Stage(Path(folder)) as stage:
        sides = stage.start(arguments.peers, arguments.before)
        tell(f"all answer: {', '.join(side.name for side in sides)}")
        rows, summary = _measured(sides, arguments, tokens)
        profiled = [
            profile(sides[0], row, PROFILE_S, tokens)
            for row in summary["table"]
            if row["side"] == OURS and row["streams"] in PROFILED and not arguments.quick
        ]
    wrong = [row for row in rows if row["front_us_per_token"] <= 0 or row["tokens_per_s"] <= 0]
    return {
        "before": arguments.before,
        "counted": (__doc__ or "").partition("Counted as front")[2].rstrip(),
        "tokens_a_stream": tokens,
        "summary": summary,
        "rounds": rows,
        "profile": profiled,
        "wrong": len(wrong),
    }


def _measured(
    sides: list[Side], arguments: argparse.Namespace, tokens: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the rounds at all levels and their summary; one level has longer answers too."""
    levels, rounds = (QUICK_LEVELS, 1) if arguments.quick else (LEVELS, 3)
    if arguments.levels:
        levels = {streams: LEVELS[streams] for streams in arguments.levels}
    rounds = arguments.rounds or rounds
    rows = list(measure(sides, levels, rounds, tokens))
    summary = summarize(rows)
    if LONGER_AT not in levels:
        return rows, summary
    longer = list(measure(sides, {LONGER_AT: 1}, rounds, LONGER * tokens))
    summary["apart"] = {
        "streams": LONGER_AT,
        "tokens": [tokens, LONGER * tokens],
        "table": tell_apart(rows, longer),
    }
    return rows + longer, summary


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run; not kept")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rounds", type=int, help="rounds a level")
    parser.add_argument("--levels", nargs="*", type=int, choices=LEVELS, help="streams at once")
    parser.add_argument("--before", help="a commit of this project, to compare with")
    arguments = parser.parse_args(argv)
    return conclude("front", bench(arguments), arguments)


if __name__ == "__main__":
    sys.exit(main())
