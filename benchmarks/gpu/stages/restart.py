"""Restart time of a killed engine of the big shape by phase, forked and spawned; private memory.

Two pairs share the GPUs at a time, one over each transfer: only restarts are measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.asking import ask, percentiles
from benchmarks.gpu.host import DUMMY, Host, prompts, sharing
from benchmarks.gpu.module_process import module_said
from benchmarks.gpu.stages.kill import Victim, load, strike
from benchmarks.gpu.stages.start import Phases

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.gpu.journal import Found, Journal
    from pd_eagle import PDEngine

CHAIN = (3, 1, 4)
# Transports that one host needs: UCX does not look for networks.
_ONE_HOST = {"UCX_TLS": "cuda_ipc,cuda_copy,sm,self,tcp"}
# SGLang pins host memory for requests that leave the KV pool, unless it is told otherwise.
_TENSORS = {"disaggregation_decode_retraction_backup": "cpu_tensor"}
UNIFIED = (Victim("unified-0"), Victim("unified-0", "host"))
PAIR = tuple(
    Victim(worker, process)
    for worker in ("decode-0", "prefill-0")
    for process in ("scheduler", "host")
)


def run(host: Host, journal: Journal) -> None:
    def keep(name: str) -> Callable[[Found], None]:
        return partial(journal.so_far, name)

    base = {"model_path": str(host.big_model()), "engine_args": DUMMY | _pool(host)}
    alone = base | {"pd_mode": "on", "disagg_transfer_backend": "nixl"}
    name = "PD nixl alone, start"
    journal.part(name, partial(_measure, host, keep(name), alone, ()), gpus=2)
    for agent, variables in {"NIXL's agent": {}, "NIXL's agent, one host": _ONE_HOST}.items():
        journal.part(agent, partial(_agent, host, variables))
    tensors = alone | {"decode_engine_args": _TENSORS}
    name = "PD nixl, retraction into tensors"
    journal.part(name, partial(_measure, host, keep(name), tensors, PAIR[:1]), gpus=2)
    for fork in (True, False):
        settings = base | {"pd_mode": "off", "fork_workers": fork}
        name = "unified, forked" if fork else "unified, spawned"
        journal.part(name, partial(_measure, host, keep(name), settings, UNIFIED))
    with sharing():
        for eagle in (False, True):
            pairs: dict[str, Callable[[], Found]] = {}
            for transfer in ("nixl", "mooncake"):
                more = _eagle(host) if eagle else {}
                pair = base | more | {"pd_mode": "on", "disagg_transfer_backend": transfer}
                name = f"PD {transfer}{' EAGLE' if eagle else ''}"
                pairs[name] = partial(_measure, host, keep(name), pair, PAIR)
            if host.dry_run:
                for name, measure in pairs.items():
                    journal.part(name, measure, gpus=2)
            else:
                journal.parts_at_once(pairs, gpus=2)
    tensor_parallel = base | {"pd_mode": "off", "tp_size": 2}
    name = "unified TP 2, forked"
    measure = partial(_measure, host, keep(name), tensor_parallel, UNIFIED)
    journal.part(name, measure, gpus=2)


def _agent(host: Host, variables: dict[str, str]) -> Found:
    """Return the seconds of each step in which NIXL gets ready for a pool of 3.2 GB."""
    pool_bytes = 2**24 if host.dry_run else 3_200_000_000
    said = module_said("benchmarks.gpu.agent", str(pool_bytes), variables=variables, timeout_s=120)
    return {"steps_s": json.loads(said.splitlines()[-1]), "variables": variables}


def _pool(host: Host) -> dict[str, Any]:
    return {} if host.dry_run else {"max_total_tokens": 60_000}


def _eagle(host: Host) -> dict[str, Any]:
    return host.eagle(CHAIN, str(host.big_draft()))


def _measure(
    host: Host,
    keep: Callable[[Found], None],
    settings: dict[str, Any],
    victims: tuple[Victim, ...],
) -> Found:
    streams, new_tokens = (4, 24) if host.dry_run else (16, 400)
    asked = prompts(streams)
    phases = Phases()
    logging.getLogger().addHandler(phases)
    try:
        with host.start(**host.shared | settings) as engine:
            found: Found = {"ready_s": round(phases.elapsed(), 2), "start": phases.seen}
            keep(found)
            found |= _first_words(engine, asked) | {"processes": list(_processes(engine))}
            keep(found)
            whole = asyncio.run(load(engine, asked, new_tokens, None))
            found["undisturbed"] = percentiles([answer.pause_s for answer in whole])
            for victim in victims:
                phases.restart()
                struck = strike(engine, asked, new_tokens, victim, whole)
                found[str(victim)] = struck | {"phases": phases.seen}
                keep(found)
            return found
    finally:
        logging.getLogger().removeHandler(phases)


def _first_words(engine: PDEngine, asked: list[list[int]]) -> Found:
    """Return a digest of the answers, generated one by one, and their first tokens.

    With dummy weights all answers may be alike: then neither the digest nor `equal` shows anything.
    """
    began = time.monotonic()
    answers = ask(engine, asked[:8], 1, 32)
    digest = hashlib.sha256(json.dumps(answers.ids).encode()).hexdigest()
    workers = engine.health()["workers"]
    return {
        "first_answers_s": round(time.monotonic() - began, 3),
        "answers": len(answers.ids),
        "answers_sha256": digest,
        "begins": [ids[:4] for ids in answers.ids],
        "spawned_because": [worker["spawned_because"] for worker in workers],
    }


def _processes(engine: PDEngine) -> Iterator[Found]:
    """Yield private memory and GPU use of every process of every worker."""
    for worker in engine.health()["workers"]:
        yield {"of": worker["name"], "process": "host"} | _of_process(worker["pid"])
        for child in _children(worker["pid"]):
            process = "scheduler" if child in worker["scheduler_pids"] else "other"
            yield {"of": worker["name"], "process": process} | _of_process(child)


def _children(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _of_process(pid: int) -> Found:
    sizes: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, kilobytes = line.split()[:2]
        sizes[name.rstrip(":")] = int(kilobytes)
    private_kb = sizes["Private_Clean"] + sizes["Private_Dirty"]
    opened = list(_opened(pid))
    threads = list(Path(f"/proc/{pid}/task").iterdir())
    return {
        "private_mb": round(private_kb / 1024, 1),
        "proportional_mb": round(sizes["Pss"] / 1024, 1),
        "threads": len(threads),
        "cuda": "/dev/nvidia-uvm" in opened,
    }


def _opened(pid: int) -> Iterator[str]:
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed since
            yield str(link.readlink())
