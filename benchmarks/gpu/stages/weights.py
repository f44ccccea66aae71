"""Real weight files of the big shape, from the page cache: start and restart by `load_format`.

The files are made up and written once, so that they are in the page cache when they are read.
`sharded_state` is left out: at TP 1 it holds the same bytes, and an engine must write it first.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.asking import ask
from benchmarks.gpu.host import DUMMY, Host, prompts
from benchmarks.gpu.stages.kill import Victim, strike
from benchmarks.gpu.stages.kill import load as answers_of
from benchmarks.gpu.stages.start import Phases

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.gpu.journal import Found, Journal

#: Part → the engine arguments that choose how weights are read; SGLang's default takes 8 threads.
CHOICES: dict[str, dict[str, Any]] = {
    "weights made up": DUMMY,
    "weights auto": {"load_format": "auto"},
    "weights safetensors, one thread": {
        "load_format": "safetensors",
        "model_loader_extra_config": json.dumps({"enable_multithread_load": False}),
    },
    "weights safetensors, no mmap": {
        "load_format": "safetensors",
        "weight_loader_disable_mmap": True,
    },
}
_IF_INSTALLED = {"weights fastsafetensors": ("fastsafetensors", {"load_format": "fastsafetensors"})}
SHARD_BYTES = 4 * 2**30


def run(host: Host, journal: Journal) -> None:
    journal.part("weights written", partial(written, host))
    for name, choice in CHOICES.items():
        journal.part(name, partial(_measure, host, choice))
    for name, (module, choice) in _IF_INSTALLED.items():
        journal.part(name, partial(_measure_if_installed, host, module, choice))


def _measure_if_installed(host: Host, module: str, choice: dict[str, Any]) -> Found:
    if importlib.util.find_spec(module) is None:
        return {"skipped": f"{module} is not installed"}
    return _measure(host, choice)


def written(host: Host) -> Found:
    folder = host.big_model()
    if not (folder / "model.safetensors.index.json").exists():
        began = time.monotonic()
        _write(folder)
        return _size(folder) | {"write_s": round(time.monotonic() - began, 2)}
    return _size(folder)


def _size(folder: Path) -> Found:
    files = list(folder.glob("*.safetensors"))
    return {"files": len(files), "written_mb": round(sum(f.stat().st_size for f in files) / 1e6)}


def _write(folder: Path) -> None:
    """Write random bfloat16 weights of the shape in `folder`'s config.json, in several files."""
    import torch
    from safetensors.torch import save_file

    shapes = dict(_shapes(folder))
    draw = torch.Generator().manual_seed(0)
    largest = max(shape.numel() for shape in shapes.values())
    values = torch.empty(largest, dtype=torch.bfloat16).normal_(0, 0.02, generator=draw)
    files: dict[str, str] = {}
    for number, names in enumerate(_shards(shapes)):
        file = f"model-{number:05}.safetensors"
        tensors = {n: values[: shapes[n].numel()].reshape(shapes[n]).clone() for n in names}
        save_file(tensors, folder / file, {"format": "pt"})
        files |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _shapes(folder: Path) -> Iterator[tuple[str, Any]]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    for name, tensor in model.state_dict().items():
        yield name, tensor.shape


def _shards(shapes: dict[str, Any]) -> Iterator[list[str]]:
    ends = itertools.accumulate(2 * shape.numel() for shape in shapes.values())
    shard_of = {name: end // SHARD_BYTES for name, end in zip(shapes, ends, strict=True)}
    for _, names in itertools.groupby(shapes, shard_of.__getitem__):
        yield list(names)


def _measure(host: Host, choice: dict[str, Any]) -> Found:
    streams, new_tokens = (4, 24) if host.dry_run else (16, 200)
    asked = prompts(streams)
    pool = {} if host.dry_run else {"max_total_tokens": 60_000}
    phases = Phases()
    logging.getLogger().addHandler(phases)
    settings = {"model_path": str(host.big_model()), "pd_mode": "off"}
    try:
        with host.start(**settings, engine_args=pool | choice) as engine:
            found: Found = {"ready_s": round(phases.elapsed(), 2), "start": phases.seen}
            ask(engine, asked[:2], 2, 8)
            whole = asyncio.run(answers_of(engine, asked, new_tokens, None))
            phases.restart()
            struck = strike(engine, asked, new_tokens, Victim("unified-0"), whole)
            return found | {"unified-0 scheduler": struck | {"phases": phases.seen}}
    finally:
        logging.getLogger().removeHandler(phases)
