"""Kills a scheduler under load: is every answer completed, after what pause, when is it back?"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.asking import ask, percentiles
from benchmarks.bench_eagle import first_difference
from benchmarks.gpu.host import Host, prompts, sharing

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.gpu.journal import Found, Journal
    from pd_eagle import PDEngine

HEAL_TIMEOUT_S = 100.0


@dataclass(frozen=True)
class Victim:
    """The process to kill: a worker's host or its scheduler."""

    worker: str
    process: str = "scheduler"

    def __str__(self) -> str:
        return f"{self.worker} {self.process}"

    @property
    def is_prefill(self) -> bool:
        return self.worker.startswith("prefill")


@dataclass
class Answer:
    ids: list[int] = field(default_factory=list)
    first_token_s: float = 0.0
    pause_s: float = 0.0
    before_pause: int = 0  # tokens there were before the longest pause
    error: str | None = None


def run(host: Host, journal: Journal) -> None:
    halves = ["decode-0", "prefill-0"]
    journal.part("unified-0", lambda: _strike(host, {"pd_mode": "off"}, ["unified-0"]))
    pairs: dict[str, Callable[[], Found]] = {}
    for transfer in ("nixl", "mooncake"):
        pair = {"pd_mode": "on", "disagg_transfer_backend": transfer}
        pairs[f"PD {transfer}"] = partial(_strike, host, pair, halves)
    if host.dry_run:
        for name, measure in pairs.items():
            journal.part(name, measure, gpus=2)
    else:
        with sharing():
            journal.parts_at_once(pairs, gpus=2)


def _strike(host: Host, settings: dict[str, Any], victims: list[str]) -> Found:
    streams, new_tokens = (4, 24) if host.dry_run else (16, 400)
    asked = prompts(streams)
    chosen = host.embedded() | host.shared | settings | {"engine_args": host.exact | host.small}
    with host.start(**chosen) as engine:
        ask(engine, asked[:2], 2, 8)
        whole = asyncio.run(load(engine, asked, new_tokens, None))
        return {
            "streams": streams,
            "undisturbed": percentiles([answer.pause_s for answer in whole]),
            **{name: strike(engine, asked, new_tokens, Victim(name), whole) for name in victims},
        }


def strike(
    engine: PDEngine, asked: list[list[int]], new_tokens: int, victim: Victim, whole: list[Answer]
) -> Found:
    """Kill `victim` under load; return the outcome of the answers and the recovery time."""
    before = _worker(engine, victim.worker)["restarts"]
    answers = asyncio.run(load(engine, asked, new_tokens, victim))
    healed_s = _until_whole(engine, victim.worker, before)
    worker = _worker(engine, victim.worker)
    places = [first_difference(a.ids, w.ids) for a, w in zip(answers, whole, strict=True)]
    return {
        "errors": [answer.error for answer in answers if answer.error],
        "complete": sum(len(answer.ids) == new_tokens for answer in answers),
        "equal": places.count(None),
        "equal_until_the_pause": sum(map(equal_until_the_pause, answers, places)),
        "first_differences": places,
        "first_token_s": percentiles([answer.first_token_s for answer in answers]),
        "pause_s": percentiles([answer.pause_s for answer in answers]),
        "whole_again_after_the_answers_s": round(healed_s, 2),
        "restarts": worker["restarts"],
        "spawned_because": worker["spawned_because"],
        "last_error": worker["last_error"],
    }


def equal_until_the_pause(answer: Answer, place: int | None) -> bool:
    """Return whether the tokens before the answer's longest pause are the undisturbed ones.

    A resumed answer may differ later: its tokens so far are prefilled then, by other kernels.
    """
    return place is None or place >= answer.before_pause


async def load(
    engine: PDEngine, asked: list[list[int]], new_tokens: int, victim: Victim | None
) -> list[Answer]:
    """Stream all answers at once; kill `victim` after a third of the tokens.

    A prefill worker would be idle by then: it is killed just before the requests are sent.
    """
    answers = [Answer() for _ in asked]
    third = asyncio.Event()

    def count() -> None:
        if sum(len(answer.ids) for answer in answers) >= len(asked) * new_tokens // 3:
            third.set()

    early = victim is not None and victim.is_prefill
    if victim and early:
        _kill(engine, victim)
    asking = [
        asyncio.create_task(_stream(engine, ids, new_tokens, answer, count))
        for ids, answer in zip(asked, answers, strict=True)
    ]
    if victim and not early:
        await asyncio.wait_for(third.wait(), HEAL_TIMEOUT_S)
        _kill(engine, victim)
    await asyncio.gather(*asking)
    return answers


async def _stream(
    engine: PDEngine, ids: list[int], new_tokens: int, answer: Answer, count: Any
) -> None:
    last = time.monotonic()
    params = {"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True}
    try:
        stream = await engine.async_generate(input_ids=ids, sampling_params=params, stream=True)
        async for chunk in stream:
            now = time.monotonic()
            if answer.ids:
                if now - last > answer.pause_s:
                    answer.pause_s, answer.before_pause = now - last, len(answer.ids)
            else:
                answer.first_token_s = now - last
            last = now
            answer.ids = list(chunk["output_ids"])
            count()
    except Exception as error:  # measured is what a client sees
        answer.error = f"{type(error).__name__}: {error}"[:300]


def _worker(engine: PDEngine, name: str) -> dict[str, Any]:
    workers: list[dict[str, Any]] = engine.health()["workers"]
    return next(worker for worker in workers if worker["name"] == name)


def _kill(engine: PDEngine, victim: Victim) -> None:
    worker = _worker(engine, victim.worker)
    pid = worker["pid"] if victim.process == "host" else worker["scheduler_pids"][0]
    os.kill(pid, signal.SIGKILL)
    logging.getLogger(__name__).info("killed %s, pid %d", victim, pid)


def _until_whole(engine: PDEngine, victim: str, before: int) -> float:
    began = time.monotonic()
    while time.monotonic() - began < HEAL_TIMEOUT_S:
        if engine.health()["status"] == "ready" and _worker(engine, victim)["restarts"] > before:
            return time.monotonic() - began
        time.sleep(0.1)
    raise TimeoutError(f"{victim} is not back after {HEAL_TIMEOUT_S} s: {engine.health()}")
