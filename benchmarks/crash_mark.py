"""A server whose engines crash at a mark in a prompt: fault injection, no part of the product.

With `[[crash decode exception 3]]` in a prompt, the decode scheduler of this request raises after
three tokens. Run `python -m benchmarks.crash_mark` instead of `server.py`. Works only where engines
are forked from their worker (on a CPU), because SGLang is patched in the worker.
"""

from __future__ import annotations

import functools
import os
import re
import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pd_eagle.plan.deployment import Stack
from pd_eagle.serve import main
from pd_eagle.workers import engine
from tests.engine.serving import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Where and how an engine crashes.
ROLES = ("prefill", "decode", "unified", "any")
WAYS = ("exception", "segv", "abort", "exit", "killed", "hang")
STACK = Stack(engine="benchmarks.crash_mark:start")

_MARK = re.compile(r"\[\[crash (\w+) (\w+) (\d+)\]\]")


def mark(role: str, way: str = "exception", after: int = 0) -> str:
    """Return the mark at which a scheduler of `role` crashes after `after` tokens."""
    assert role in ROLES, role
    assert way in WAYS, way
    return f"[[crash {role} {way} {after}]]"


def start(engine_args: Mapping[str, Any], *, fork: bool) -> engine.Engine:
    """Start an engine whose scheduler crashes at marks."""
    assert fork, "a spawned scheduler would not have the patch"
    from sglang.srt.managers.scheduler import Scheduler

    mode = engine_args.get("disaggregation_mode", "null")
    role = "unified" if mode == "null" else mode
    Scheduler.run_batch = _obeying(Scheduler.run_batch, role)
    return engine.start(engine_args, fork=fork)


class CrashingServer(ServerProcess):
    """A server whose engines crash at marks."""

    PROGRAM = ("-m", "benchmarks.crash_mark")


@dataclass(frozen=True)
class _Order:
    way: str
    after: int


def _obeying(run_batch: Callable[..., Any], role: str) -> Callable[..., Any]:
    orders: dict[str, _Order | None] = {}

    @functools.wraps(run_batch)
    def run(scheduler: Any, batch: Any, *args: Any, **options: Any) -> Any:
        for request in batch.reqs:
            if request.rid not in orders:
                text = scheduler.tokenizer.decode(request.origin_input_ids)
                orders[request.rid] = _order_in(text, role)
            order = orders[request.rid]
            if order is not None and len(request.output_ids) >= order.after:
                _crash(order.way, request.rid)
        return run_batch(scheduler, batch, *args, **options)

    return run


def _order_in(text: str, role: str) -> _Order | None:
    found = _MARK.search(text)
    if found is None or found[1] not in (role, "any"):
        return None
    return _Order(found[2], int(found[3]))


def _crash(way: str, rid: str) -> None:
    match way:
        case "exception":
            raise IndexError(f"a mark in the prompt of {rid} says so")
        case "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "abort":
            os.abort()
        case "exit":
            os._exit(1)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            while True:
                time.monotonic()


if __name__ == "__main__":
    sys.exit(main(os.environ, STACK))
