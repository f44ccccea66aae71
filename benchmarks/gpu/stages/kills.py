"""Processes of a pair killed again and again under load: answers, pauses, GPU memory that is left.

The embedded model, with real text. Each kill is taken for the first one: a worker that dies as
often as here would be started again more and more slowly, and be given up. Pairs over both
transfers share the GPUs at a time.
"""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import time
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from benchmarks.asking import ask, percentiles
from benchmarks.gpu.host import Host, prompts, sharing
from benchmarks.gpu.stages.kill import Victim, strike
from benchmarks.gpu.stages.kill import load as answers_of
from benchmarks.gpu.stages.restart import CHAIN, PAIR, UNIFIED
from pd_eagle.workers.restarts import RestartPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.gpu.journal import Found, Journal


def run(host: Host, journal: Journal) -> None:
    policy = partial(RestartPolicy, window_s=0.1)
    with sharing(), patch("pd_eagle.front.RestartPolicy", policy):
        _part(journal, host, {"kills unified": {"pd_mode": "off"}}, UNIFIED)
        for eagle in (False, True):
            pairs = {}
            for transfer in ("nixl", "mooncake"):
                pair: dict[str, Any] = {"pd_mode": "on", "disagg_transfer_backend": transfer}
                more = host.eagle(CHAIN) if eagle else {}
                pairs[f"kills PD {transfer}{' EAGLE' if eagle else ''}"] = pair | more
            _part(journal, host, pairs, PAIR)


def _part(
    journal: Journal, host: Host, plans: dict[str, dict[str, Any]], victims: Sequence[Victim]
) -> None:
    parts: dict[str, Callable[[], Found]] = {
        name: partial(_measure, host, partial(journal.so_far, name), settings, victims)
        for name, settings in plans.items()
    }
    if host.dry_run or len(parts) == 1:
        for name, measure in parts.items():
            journal.part(name, measure, gpus=min(len(parts), 2))
    else:
        journal.parts_at_once(parts, gpus=2)


def _measure(
    host: Host, keep: Callable[[Found], None], settings: dict[str, Any], victims: Sequence[Victim]
) -> Found:
    streams, new_tokens = (4, 24) if host.dry_run else (16, 400)
    asked = prompts(streams)
    unused_mb = gpu_used_mb()
    own = host.embedded() | host.shared | {"engine_args": host.exact | host.small}
    with host.start(**own | settings) as engine:
        ask(engine, asked[:2], 2, 8)
        whole = asyncio.run(answers_of(engine, asked, new_tokens, None))
        kills: list[Found] = []
        samples = [gpu_used_mb()]
        began = time.monotonic()
        for victim in itertools.cycle(victims):
            struck = strike(engine, asked, new_tokens, victim, whole)
            kills.append({"killed": str(victim)} | struck)
            samples.append(gpu_used_mb())
            spent_s = time.monotonic() - began
            found = summed(kills, streams) | {"spent_s": round(spent_s, 1)}
            keep(found | memory(unused_mb, samples))
            if spent_s + spent_s / len(kills) > host.seconds:
                break
    return found | memory(unused_mb, samples) | {"gpu_used_after_mb": gpu_used_mb()}


def summed(kills: list[Found], streams: int) -> Found:
    """Return what became of all answers, and the longest waits by what was killed."""
    found: Found = {
        "kills": len(kills),
        "answers": len(kills) * streams,
        "complete": sum(kill["complete"] for kill in kills),
        "equal": sum(kill["equal"] for kill in kills),
        "equal_until_the_pause": sum(kill["equal_until_the_pause"] for kill in kills),
        "errors": [error for kill in kills for error in kill["errors"]][:20],
        "spawned_because": sorted({str(kill["spawned_because"]) for kill in kills}),
    }
    for victim in dict.fromkeys(kill["killed"] for kill in kills):
        of_victim = [kill for kill in kills if kill["killed"] == victim]
        found[victim] = {
            "kills": len(of_victim),
            "longest_pause_s": percentiles([kill["pause_s"]["max"] for kill in of_victim]),
            "longest_first_token_s": percentiles(
                [kill["first_token_s"]["max"] for kill in of_victim]
            ),
        }
    return found


def gpu_used_mb() -> list[int]:
    """Return the memory in use on each GPU, by `nvidia-smi`; empty where there is none."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except FileNotFoundError:
        return []
    return [int(line) for line in done.stdout.split()]


def memory(unused_mb: list[int], samples: list[list[int]]) -> Found:
    """Return what was in use before, and at most after the first and the second half of kills.

    At most, since another pair on the same GPUs may just be starting again.
    """
    half = (len(samples) + 1) // 2
    return {
        "gpu_used_before_mb": unused_mb,
        "gpu_used_first_half_mb": _most(samples[:half]),
        "gpu_used_second_half_mb": _most(samples[half:]),
    }


def _most(samples: list[list[int]]) -> list[int]:
    return [max(of_gpu) for of_gpu in zip(*samples, strict=True)]
