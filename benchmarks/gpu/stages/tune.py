"""`pd-eagle tune` on the big shape, and the same plans measured at a fixed ladder of rates.

Three traffics, three service levels each. Part "NAME tune" is the search; it leaves tune-NAME.json.
Part "NAME exhaustive" reads that, serves the same plans over HTTP at the same time, with small KV
pools, and measures one at a time: is tune's choice within 5 % of the best plan at each level? The
ladder is around what the winners keep; what the time does not allow is named. Variables: see below.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import aiohttp

from benchmarks.compact_json import write
from benchmarks.gpu.host import DUMMY, Host
from benchmarks.gpu.stages.eagle import ACCEPTED, SIMULATE
from benchmarks.gpu.stages.load import Mix, Outcome, ask
from benchmarks.gpu.tune_verdict import verdict
from benchmarks.provenance import tell
from pd_eagle import tune_run
from pd_eagle.plan import devices
from pd_eagle.tune import Level, Times, Trial
from pd_eagle.tune_load import quantiles
from pd_eagle.tune_traffic import Asked, Traffic
from tests.engine.serving import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from benchmarks.gpu.journal import Found, Journal
    from pd_eagle.plan.devices import Inventory
    from pd_eagle.tune import Candidate

#: Budget of a search; seconds at a rate, rates a plan, and seconds in all of the ladder.
BUDGET_S, SECONDS = "TUNE_BUDGET_S", "TUNE_SECONDS"
RATES, LADDER_S = "TUNE_RATES", "TUNE_LADDER_S"
#: Plans by regular expression, for the search and for the ladder.
ONLY, LADDER_ONLY = "TUNE_ONLY", "TUNE_LADDER_ONLY"
#: Plans that share the GPUs at a time; 1: each plan also with an EAGLE chain.
AT_ONCE, EAGLE = "TUNE_AT_ONCE", "TUNE_EAGLE"
CHAIN = (3, 1, 4)
STEP = 1.2
_SHARED = "benchmarks/gpu/shared_server.py"
_DRAFT_NAMES = ("NUM_STEPS", "EAGLE_TOPK", "NUM_DRAFT_TOKENS")


@dataclass(frozen=True, slots=True)
class Load:
    """One traffic and the levels at which it is judged."""

    name: str
    asked: Asked
    levels: tuple[Level, ...]


def _levels(first_s: float) -> tuple[Level, ...]:
    return (
        Level(first_s, 0.04),
        Level(first_s, 0.02, 0.05),
        Level(first_s, 0.01),
    )


LOADS = (
    Load("chat", Asked(300, 100), _levels(0.5)),
    Load("documents", Asked(6000, 64), _levels(2.0)),
    Load("agents", Asked(3000, 300, 0.5), _levels(1.0)),
)
DRY = (Load("chat", Asked(16, 8, 0.5), (Level(5.0, 1.0), Level(5.0, 0.5, 2.0))),)


def run(host: Host, journal: Journal) -> None:
    for load in DRY if host.dry_run else LOADS:
        journal.part(f"{load.name} tune", partial(_tuned, host, load), gpus=2)
        name = f"{load.name} exhaustive"
        journal.part(name, partial(_exhaustive, host, journal, load, name), gpus=2)


def _number(name: str, default: float) -> float:
    return float(os.environ.get(name, default))


def _environ(host: Host) -> dict[str, str]:
    """Return the settings common to the search and to the ladder."""
    found = {
        "DEVICE": host.device,
        "MODEL_PATH": str(host.big_model()),
        "ENGINE_ARGS": json.dumps(host.settings(**DUMMY)["engine_args"]),
        "DISAGG_TRANSFER_BACKEND": "nixl",
        "MAX_INFLIGHT": "1024",
        "CANARY_INTERVAL_S": "600",
        "HANG_TIMEOUT_S": "120",  # a kernel that is compiled keeps an engine silent
    }
    if os.environ.get(EAGLE) == "1":
        found |= {
            "SPECULATIVE_ALGORITHM": "EAGLE",
            "SPECULATIVE_DRAFT_MODEL_PATH": str(host.big_draft()),
        }
        found |= {
            f"SPECULATIVE_{name}": str(value)
            for name, value in zip(_DRAFT_NAMES, CHAIN, strict=True)
        }
    return found


@contextmanager
def _acceptance() -> Iterator[None]:
    """Simulate the acceptance of drafts, where there are any."""
    if os.environ.get(EAGLE) == "1":
        os.environ[SIMULATE] = str(ACCEPTED[0])
    try:
        yield
    finally:
        os.environ.pop(SIMULATE, None)


def _tuned(host: Host, load: Load) -> Found:
    budget_s = _number(BUDGET_S, 90 if host.dry_run else 270)
    only = os.environ.get(ONLY, "")
    with _acceptance():
        report = tune_run.run(_environ(host), [load.asked], load.levels, budget_s, tell, only)
    for line in report.lines():
        tell(line)
    found = report.as_json() | {"in_time": report.took_s <= budget_s}
    write(_file(host, load), found)
    return found


def _file(host: Host, load: Load) -> Path:
    return host.folder / f"tune-{load.name}.json"


# --- the ladder


def _exhaustive(host: Host, journal: Journal, load: Load, part: str) -> Found:
    path = _file(host, load)
    if not path.exists():
        raise FileNotFoundError(f"{path.name}: wanted part {load.name!r} tune before, same --out")
    tuned = json.loads(path.read_text())
    ends_at = time.monotonic() + _number(LADDER_S, 120 if host.dry_run else 280)
    rates = ladder(_kept(tuned), int(_number(RATES, 2 if host.dry_run else 5)))
    if not rates:
        raise ValueError(f"{path.name}: no plan kept any level: nothing to measure around")
    inventory = devices.discover(host.device, os.environ.get("CUDA_VISIBLE_DEVICES"))
    plans = _plans(host, tuned, inventory)
    measured: dict[str, list[Trial]] = {}
    found: Found = {"rates_per_s": rates, "ready_s": []}
    at_once = int(_number(AT_ONCE, 4))
    groups = [plans[i : i + at_once] for i in range(0, len(plans), at_once)]
    for left, group in zip(range(len(groups), 0, -1), groups, strict=True):
        until = time.monotonic() + (ends_at - time.monotonic()) / left
        for name, trials in _measured(host, load, group, rates, until, found):
            measured[name] = trials
            _sum_up(found, measured, load, tuned, plans)
            journal.so_far(part, found)
    return found


def _kept(tuned: Found) -> list[float]:
    """Return the rates that the winners kept, one a level."""
    kept = [
        level["plans"][level["winner"]]["keeps_per_s"]
        for level in tuned["levels"]
        if level["winner"]
    ]
    return [rate for rate in kept if rate]


def ladder(kept: Sequence[float], most: int) -> list[float]:
    """Return at most `most` rates of a geometric ladder, the nearest to one of `kept` first."""
    if not kept:
        return []
    lowest, highest = min(kept) / STEP**1.5, max(kept) * STEP**1.5
    count = math.ceil(math.log(highest / lowest) / math.log(STEP))
    rates = [lowest * (highest / lowest) ** (i / count) for i in range(count + 1)]

    def distance(rate: float) -> float:
        return min(abs(math.log(rate / one)) for one in kept)

    return [float(f"{rate:.4g}") for rate in sorted(rates, key=distance)[:most]]


def _plans(host: Host, tuned: Found, inventory: Inventory) -> list[Candidate]:
    """Return the plans that the search had, its winners first."""
    only = os.environ.get(LADDER_ONLY) or os.environ.get(ONLY, "")
    plans = tune_run.candidates(_environ(host), inventory)
    winners = {level["winner"] for level in tuned["levels"]}
    plans = [one for one in plans if re.search(only, one.name) or one.name in winners]
    return sorted(plans, key=lambda one: one.name not in winners)


def _measured(
    host: Host,
    load: Load,
    plans: Sequence[Candidate],
    rates: Sequence[float],
    ends_at: float,
    found: Found,
) -> Iterator[tuple[str, list[Trial]]]:
    """Yield every plan's trials so far, after each: the most telling rate of all plans first."""
    seconds = _number(SECONDS, 2 if host.dry_run else 10)
    vocab_size = 1000 if host.dry_run else 100_000
    with ExitStack() as stack, _acceptance():
        began = time.monotonic()
        servers = _started(host, plans, stack)
        found["ready_s"].append(round(time.monotonic() - began, 1))
        sent = {name: Traffic([load.asked], vocab_size) for name in servers}
        for _ in range(2):  # the first time compiles
            asyncio.run(_warm(servers, sent, load, max(rates) / len(servers)))
        trials: dict[str, list[Trial]] = {name: [] for name in servers}
        for rate in rates:
            for name, server in servers.items():
                if time.monotonic() + seconds > ends_at:
                    return
                trial = asyncio.run(_at_rate(server.url, sent[name], load, rate, seconds))
                trials[name].append(trial)
                yield name, trials[name]


def _started(host: Host, plans: Sequence[Candidate], stack: ExitStack) -> dict[str, ServerProcess]:
    servers = {
        plan.name: ServerProcess(
            host.folder / f"tune-{number}.log", script=_SHARED, **_small(host, plan)
        )
        for number, plan in enumerate(plans)
    }
    with ThreadPoolExecutor(len(servers)) as pool:
        for started in [pool.submit(stack.enter_context, one) for one in servers.values()]:
            started.result()
    return servers


def _small(host: Host, plan: Candidate) -> dict[str, str]:
    """Return the settings of `plan` with KV pools that let several plans share the GPUs."""
    given = {**_environ(host), **plan.settings}
    if host.dry_run:
        return given
    in_pd = given.get("PD_MODE") == "on"
    pool = json.loads(given["ENGINE_ARGS"]) | ({} if in_pd else {"max_total_tokens": 150_000})
    given |= {"ENGINE_ARGS": json.dumps(pool), "MEM_FRACTION_STATIC": "0.95"}
    if in_pd:
        given["PREFILL_ENGINE_ARGS"] = json.dumps({"max_total_tokens": 60_000})
        given["DECODE_ENGINE_ARGS"] = json.dumps({"max_total_tokens": 250_000})
    return given


async def _warm(
    servers: dict[str, ServerProcess], sent: dict[str, Traffic], load: Load, rate: float
) -> None:
    """Let every service compile what batches need, at the same time."""
    await asyncio.gather(
        *(_at_rate(server.url, sent[name], load, rate, 3.0) for name, server in servers.items())
    )


async def _at_rate(url: str, traffic: Traffic, load: Load, rate: float, seconds: float) -> Trial:
    """Offer `rate` requests/s for `seconds`; what is late is cut off: it was not good."""
    mix = Mix(load.name, load.asked.prompt, load.asked.answer, (), 0.0, 0.0)
    count = max(1, round(rate * seconds))
    sent = [(at, traffic.prompt(one)) for at, one in traffic.arrivals(count, seconds)]
    slowest_s = max(one.first_s + mix.new_tokens * one.mean_gap_s for one in load.levels)
    connector, limit = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=limit) as session:
        began = time.monotonic()
        asking = []
        for moment, prompt in sent:
            await asyncio.sleep(max(0.0, began + moment - time.monotonic()))
            asking.append(asyncio.create_task(ask(session, url, prompt, mix)))
        done, late = await asyncio.wait(asking, timeout=slowest_s + 1.0)
        took_s = time.monotonic() - began
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
    return trial_of([task.result() for task in done], load, rate, count, took_s)


def trial_of(
    outcomes: Iterable[Outcome], load: Load, rate: float, asked: int, took_s: float
) -> Trial:
    """Return what the client saw as a trial, with the gaps as the client got them."""
    outcomes = list(outcomes)
    whole = [one for one in outcomes if one.error is None and one.first_s]
    after = max(load.asked.answer - 1, 1)
    times = [
        Times(one.first_s, sum(one.gaps_s) / after, max(one.gaps_s, default=0.0)) for one in whole
    ]
    return Trial(
        rate_per_s=rate,
        asked=asked,
        good=tuple(sum(map(level.keeps, times)) for level in load.levels),
        answers_per_s=round(len(whole) / took_s, 3),
        seconds=round(took_s, 2),
        first_s=quantiles([one.first_s for one in times]),
        mean_gap_s=quantiles([one.mean_gap_s for one in times]),
        longest_gap_s=quantiles([one.longest_gap_s for one in times]),
        errors=tuple(sorted({one.error for one in outcomes if one.error}))[:3],
    )


# --- the verdict


def _sum_up(
    found: Found,
    measured: dict[str, list[Trial]],
    load: Load,
    tuned: Found,
    plans: Sequence[Candidate],
) -> None:
    done = {name: [trial.rate_per_s for trial in trials] for name, trials in measured.items()}
    found["trials"] = {
        name: [dataclasses.asdict(trial) for trial in trials] for name, trials in measured.items()
    }
    found["not_measured"] = {
        plan.name: missing
        for plan in plans
        if (missing := [r for r in found["rates_per_s"] if r not in done.get(plan.name, [])])
    }
    found["levels"] = [
        verdict(measured, number, level, tuned["levels"][number]["winner"])
        for number, level in enumerate(load.levels)
    ]
