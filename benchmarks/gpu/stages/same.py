"""PD gives the unified engine's tokens, and EAGLE those without it: greedy, the embedded model."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.asking import Answers, ask
from benchmarks.bench_eagle import DEFAULT_TREE, differences
from benchmarks.gpu.host import Host, prompts

if TYPE_CHECKING:
    from benchmarks.gpu.journal import Found, Journal
    from pd_eagle import PDEngine

PD = {"pd_mode": "on"}
OFF = {"pd_mode": "off"}


def run(host: Host, journal: Journal) -> None:
    _compare(host, journal, "exact", host.exact)
    if not host.dry_run:
        _compare(host, journal, "as served", {"dtype": "bfloat16"})


def _compare(host: Host, journal: Journal, name: str, engine_args: dict[str, object]) -> None:
    asked, new_tokens = (prompts(4), 12) if host.dry_run else (prompts(32), 128)
    eagle = host.eagle(DEFAULT_TREE)
    reference: list[Answers] = []

    def start(settings: dict[str, Any]) -> PDEngine:
        return host.start(**host.embedded() | settings | {"engine_args": engine_args})

    def plain() -> Found:
        with start(OFF) as engine:
            reference.append(ask(engine, asked, 1, new_tokens))
            return _found(ask(engine, asked, 8, new_tokens), reference[0])

    def other(settings: dict[str, Any]) -> Found:
        with start(settings) as engine:
            return {
                f"{at_once} at once": _found(ask(engine, asked, at_once, new_tokens), reference[0])
                for at_once in (1, 8)
            }

    if journal.part(f"{name} unified, 8 at once against 1", plain) is None:
        return
    journal.part(f"{name} unified EAGLE", lambda: other(OFF | eagle))
    for transfer in ("nixl", "mooncake"):
        pair = PD | {"disagg_transfer_backend": transfer}
        journal.part(f"{name} PD {transfer}", partial(other, pair), gpus=2)
    both = PD | {"disagg_transfer_backend": "nixl"} | eagle
    journal.part(f"{name} PD nixl EAGLE", lambda: other(both), gpus=2)


def _found(answers: Answers, reference: Answers) -> Found:
    places = differences(answers, reference)
    return {
        "answers": len(places),
        "equal": places.count(None),
        "tokens": answers.tokens,
        "first_differences": places,
        "tokens_per_verification": answers.tokens_per_verification,
    }
