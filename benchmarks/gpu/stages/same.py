"""PD gives the unified engine's tokens, and EAGLE those without it: greedy, the embedded model."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.asking import Answers, ask
from benchmarks.bench_eagle import DEFAULT_TREE, differences
from benchmarks.gpu.host import Host, prompts

if TYPE_CHECKING:
    from benchmarks.gpu.journal import Found, Journal

# In float32 a token does not depend on the batch's shape; bfloat16 is what is served.
DTYPES = ("float32", "bfloat16")
PD = {"pd_mode": "on"}
OFF = {"pd_mode": "off"}


def run(host: Host, journal: Journal) -> None:
    for dtype in DTYPES[:1] if host.dry_run else DTYPES:
        _compare(host, journal, dtype)


def _compare(host: Host, journal: Journal, dtype: str) -> None:
    asked, new_tokens = (prompts(4), 12) if host.dry_run else (prompts(32), 128)
    eagle = host.eagle(DEFAULT_TREE)
    reference: list[Answers] = []

    def plain() -> Found:
        with host.start(dtype, **host.embedded(), **OFF) as engine:
            reference.append(ask(engine, asked, 1, new_tokens))
            return _found(ask(engine, asked, 8, new_tokens), reference[0])

    def other(settings: dict[str, Any]) -> Found:
        with host.start(dtype, **host.embedded(), **settings) as engine:
            return {
                f"{at_once} at once": _found(ask(engine, asked, at_once, new_tokens), reference[0])
                for at_once in (1, 8)
            }

    if journal.part(f"{dtype} unified, 8 at once against 1", plain) is None:
        return
    journal.part(f"{dtype} unified EAGLE", lambda: other(OFF | eagle))
    for transfer in ("nixl", "mooncake"):
        pair = PD | {"disagg_transfer_backend": transfer}
        journal.part(f"{dtype} PD {transfer}", partial(other, pair), gpus=2)
    both = PD | {"disagg_transfer_backend": "nixl"} | eagle
    journal.part(f"{dtype} PD nixl EAGLE", lambda: other(both), gpus=2)


def _found(answers: Answers, reference: Answers) -> Found:
    places = differences(answers, reference)
    return {
        "answers": len(places),
        "equal": places.count(None),
        "tokens": answers.tokens,
        "first_differences": places,
        "tokens_per_verification": answers.tokens_per_verification,
    }
