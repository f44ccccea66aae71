"""KV transfer by prompt length over NIXL and Mooncake, beside a plain copy over the same link."""

from __future__ import annotations

import re
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.asking import ask
from benchmarks.gpu.host import DUMMY, Host

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.gpu.journal import Found, Journal
    from pd_eagle import PDEngine

# Of the prefill engine; SGLang 0.5.23, srt/observability/metrics_collector.py.
_SERIES = re.compile(r"sglang:kv_transfer_(\w+)_(sum|count)\{([^}]*)\} (\S+)")
_COPIES = 20


def run(host: Host, journal: Journal) -> None:
    journal.part("copies", lambda: _copies(host), gpus=0)
    for transfer in ("nixl", "mooncake"):
        journal.part(transfer, partial(_transfers, host, transfer, journal), gpus=2)


def _copies(host: Host) -> Found:
    """Copy from device to device, and to host memory and back: GB/s by size."""
    import torch

    places = {"cpu": torch.device("cpu")}
    places |= {f"cuda:{i}": torch.device("cuda", i) for i in range(torch.cuda.device_count())}
    sizes = (2**20, 2**24) if host.dry_run else (2**20, 2**24, 2**28, 2**30)
    found: Found = {}
    for source, target in _routes(list(places)):
        speeds = {}
        for size in sizes:
            pinned = "cpu" in (source, target) and source != target
            made = [
                torch.ones(size, dtype=torch.uint8, device=places[place])
                for place in (source, target)
            ]
            if pinned:
                made = [t.pin_memory() if t.device.type == "cpu" else t for t in made]
            speeds[f"{size} bytes"] = _gb_per_s(size, partial(made[1].copy_, made[0], True))
        found[f"{source} to {target}"] = speeds
    return found


def _routes(places: list[str]) -> list[tuple[str, str]]:
    gpus = [place for place in places if place != "cpu"]
    if not gpus:
        return [("cpu", "cpu")]
    routes = [("cpu", gpus[0]), (gpus[0], "cpu"), (gpus[0], gpus[0])]
    return routes + [(a, b) for a in gpus[:2] for b in gpus[:2] if a != b]


def _gb_per_s(size: int, copy: Callable[[], Any]) -> float:
    import torch

    def wait() -> None:
        for i in range(torch.cuda.device_count()):
            torch.cuda.synchronize(i)

    copy()
    wait()
    began = time.monotonic()
    for _ in range(_COPIES):
        copy()
    wait()
    return round(size * _COPIES / (time.monotonic() - began) / 1e9, 2)


def _transfers(host: Host, transfer: str, journal: Journal) -> Found:
    lengths = (64, 500) if host.dry_run else (128, 512, 2048, 8192, 16384, 30000)
    repeats = 2 if host.dry_run else 8
    settings: dict[str, Any] = {"model_path": str(host.big_model()), "engine_args": DUMMY}
    began = time.monotonic()
    with host.start("bfloat16", pd_mode="on", disagg_transfer_backend=transfer, **settings) as pair:
        ready_s = round(time.monotonic() - began, 2)
        ask(pair, [[7] * 64] * 2, 1, 2)
        found: Found = {"ready_s": ready_s}
        for length in lengths:
            found[str(length)] = _one_length(pair, length, repeats)
            journal.so_far(transfer, found)
        return found


def _one_length(pair: PDEngine, length: int, repeats: int) -> Found:
    """Transfer prompts of `length` tokens without shared prefixes, one at a time."""
    before = _told(pair)
    asked = [[(length * 31 + i * 97) % 40000 + 100] + [1000] * (length - 1) for i in range(repeats)]
    answers = ask(pair, asked, 1, 2)
    after = _told(pair)
    found: Found = {"seconds_a_request": round(answers.seconds / repeats, 4)}
    for name, (total, count) in after.items():
        was_total, was_count = before.get(name, (0.0, 0.0))
        if count > was_count:
            found[name] = round((total - was_total) / (count - was_count), 4)
    return found


def _told(pair: PDEngine) -> dict[str, tuple[float, float]]:
    """Return sum and count of SGLang's histograms of the transfer."""
    text = pair._front.metrics("")[0].decode()
    sums: dict[str, dict[str, float]] = {}
    for name, what, _, value in _SERIES.findall(text):
        of = sums.setdefault(name, {})
        of[what] = of.get(what, 0.0) + float(value)
    return {name: (of.get("sum", 0.0), of.get("count", 0.0)) for name, of in sums.items()}
