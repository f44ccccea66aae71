"""Tokens compared with a forked unified engine's: of PD, with EAGLE, and of spawned engines.

Greedy, with the embedded model. All engines run at the same time, since the comparison does not
depend on speed.
"""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.asking import Answers, ask
from benchmarks.bench_eagle import DEFAULT_TREE, differences, gaps_of
from benchmarks.gpu.host import Host, prompts, sharing
from pd_eagle.workers.engine import generate_input_class

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.gpu.journal import Found, Journal
    from pd_eagle import PDEngine

PD = {"pd_mode": "on"}
OFF = {"pd_mode": "off"}
_SPAWNED = {"fork_workers": False}
REFERENCE_TIMEOUT_S = 200.0


def run(host: Host, journal: Journal) -> None:
    generate_input_class()  # before threads import it
    single, pairs = _parts(host, "exact", host.exact, spawned=True)
    if not host.dry_run:
        more_single, more_pairs = _parts(host, "as served", {"dtype": "bfloat16"})
        single, pairs = single | more_single, pairs | more_pairs
    if journal.gpus > 1 and not host.dry_run:
        with sharing():
            journal.parts_at_once(single | pairs)
        return
    for name, part in single.items():
        journal.part(name, part)
    for name, part in pairs.items():
        journal.part(name, part, gpus=2)


Parts = dict[str, "Callable[[], Found]"]


def _parts(
    host: Host, name: str, engine_args: dict[str, object], *, spawned: bool = False
) -> tuple[Parts, Parts]:
    """Return the parts that need one GPU, and those that need two."""
    compared = _Compared(host, engine_args)
    eagle = host.eagle(DEFAULT_TREE)
    single: Parts = {
        f"{name} unified, 8 at once against 1": compared.plain,
        f"{name} unified EAGLE": partial(compared.other, OFF | eagle),
    }
    pairs: Parts = {}
    for transfer in ("nixl", "mooncake"):
        pair = PD | {"disagg_transfer_backend": transfer}
        pairs[f"{name} PD {transfer}"] = partial(compared.other, pair)
        pairs[f"{name} PD {transfer} EAGLE"] = partial(compared.other, pair | eagle)
        if spawned:
            pairs[f"{name} PD {transfer}, spawned"] = partial(compared.other, pair | _SPAWNED)
    if spawned:
        single[f"{name} unified, spawned"] = partial(compared.other, OFF | _SPAWNED)
    return single, pairs


class _Compared:
    """Engines of one kind, each compared with the plain unified engine at batch 1."""

    def __init__(self, host: Host, engine_args: dict[str, object]) -> None:
        self._host = host
        self._engine_args = engine_args
        self._asked, self._new_tokens = (prompts(4), 12) if host.dry_run else (prompts(32), 128)
        self._plain: Future[tuple[Answers, Answers]] = Future()

    def plain(self) -> Found:
        try:
            with self._start(OFF) as engine:
                alone = self._ask(engine, 1)
                batch = self._ask(engine, 8)
                told = self._ask(engine, 8, return_logprob=True, top_logprobs_num=2)
                spawned_because = [w["spawned_because"] for w in engine.health()["workers"]]
        except BaseException as error:
            self._plain.set_exception(error)
            raise
        self._plain.set_result((alone, told))
        return _found(batch, alone, told) | {"spawned_because": spawned_because}

    def other(self, settings: dict[str, Any]) -> Found:
        with self._start(settings) as engine:
            answers = {at_once: self._ask(engine, at_once) for at_once in (1, 8)}
            spawned_because = [w["spawned_because"] for w in engine.health()["workers"]]
        reference = self._plain.result(REFERENCE_TIMEOUT_S)
        found: Found = {f"{n} at once": _found(a, *reference) for n, a in answers.items()}
        return found | {"spawned_because": spawned_because}

    def _start(self, settings: dict[str, Any]) -> PDEngine:
        args = {"engine_args": self._engine_args | self._host.small}
        own = self._host.embedded() | self._host.shared
        return self._host.start(**own | settings | args)

    def _ask(self, engine: PDEngine, at_once: int, **options: Any) -> Answers:
        return ask(engine, self._asked, at_once, self._new_tokens, **options)


def _found(answers: Answers, reference: Answers, told: Answers) -> Found:
    places = differences(answers, reference)
    return {
        "answers": len(places),
        "equal": places.count(None),
        "tokens": answers.tokens,
        "first_differences": places,
        "gaps_at_first_difference": _gaps(places, reference, told),
        "tokens_per_verification": answers.tokens_per_verification,
    }


def _gaps(places: list[int | None], reference: Answers, told: Answers) -> list[float | None]:
    """Return the gap of the two best tokens (nats) where an answer first differs.

    None where the answer with log probabilities had diverged from the reference before.
    """
    gaps: list[float | None] = []
    for i, place in enumerate(places):
        if place is None:
            continue
        known = told.ids[i][:place] == reference.ids[i][:place] and place < len(told.ids[i])
        gaps.append(round(gaps_of(told.meta[i])[place], 4) if known else None)
    return gaps
