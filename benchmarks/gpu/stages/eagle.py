"""EAGLE on and off by batch size: the embedded model's real draft; the big shape, acceptance set.

SGLang can simulate acceptance (SGLANG_SIMULATE_ACC_LEN): steps then take their real time, but the
tokens mean nothing. Those parts are marked `simulated_acceptance`.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.asking import ask
from benchmarks.gpu.host import DUMMY, Host, prompts, warmed

if TYPE_CHECKING:
    from benchmarks.bench_eagle import Tree
    from benchmarks.gpu.journal import Found, Journal

SIMULATE = "SGLANG_SIMULATE_ACC_LEN"
TREES: tuple[Tree | None, ...] = (None, (2, 6, 10), (3, 1, 4))
#: Simulated mean tokens a verification.
ACCEPTED = (2.5,)


def run(host: Host, journal: Journal) -> None:
    for tree in TREES:
        journal.part(f"embedded {_name(tree)}", partial(_embedded, host, tree))
    journal.part("big off", partial(_big, host, None, None))
    for accepted in ACCEPTED:
        for tree in TREES[1:]:
            name = f"big {_name(tree)} simulated {accepted}"
            journal.part(name, partial(_big, host, tree, accepted))


def _name(tree: Tree | None) -> str:
    return ",".join(map(str, tree)) if tree else "off"


def _batches(host: Host) -> tuple[int, ...]:
    return (1, 2) if host.dry_run else (1, 4, 16, 64)


def _embedded(host: Host, tree: Tree | None) -> Found:
    eagle = host.eagle(tree) if tree else {}
    return _measure(host, host.embedded() | eagle) | {"tree": tree}


def _big(host: Host, tree: Tree | None, accepted: float | None) -> Found:
    settings: dict[str, Any] = {"model_path": str(host.big_model()), "engine_args": DUMMY}
    if tree:
        settings |= host.eagle(tree, str(host.big_draft()))
    if accepted:
        os.environ[SIMULATE] = str(accepted)
    try:
        return _measure(host, settings) | {"tree": tree, "simulated_acceptance": accepted}
    finally:
        os.environ.pop(SIMULATE, None)


def _measure(host: Host, settings: dict[str, Any]) -> Found:
    batches, new_tokens = _batches(host), 12 if host.dry_run else 256
    # SGLang's default with EAGLE is 48 running requests: the largest batch must run at once.
    args = settings.get("engine_args", {}) | {"max_running_requests": max(batches)}
    asked = prompts(max(batches))
    found: Found = {}
    with host.start("bfloat16", pd_mode="off", **settings | {"engine_args": args}) as engine:
        warmed(engine, asked)
        for batch in batches:
            count = batch if host.dry_run else max(batch, 4)
            for _ in range(2):  # each batch size compiles its own kernels: the second run counts
                answers = ask(engine, asked[:count], batch, new_tokens)
            found[f"batch {batch}"] = answers.speed()
    return found | {"asked_before": True}
