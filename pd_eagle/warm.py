"""`pd-eagle warm`: has the planned engines compile their kernels, and says what that saves.

Engines are started twice and asked the same: the first time compiles, the second time finds what
was kept. It decides nothing about plans.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pd_eagle.pd_engine import PDEngine
from pd_eagle.plan import config, devices, kernel_cache, models

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

#: Tokens of the prompts: kernels differ by the size of a batch, up to what a chunk holds.
PROMPT_TOKENS = (12, 90, 400, 1500)
#: So many prompts have these lengths, and all others the first, so that a small KV pool holds them.
_VARIED = 16
#: Enough for a whole batch to be decoded at once, though its prompts are prefilled in turn.
NEW_TOKENS = 48
#: Larger batches run what was compiled for this one.
LARGEST_BATCH = 256
#: Sampling and grammars have kernels of their own.
_GREEDY: dict[str, Any] = {"temperature": 0}
_SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "top_k": 40}
_GRAMMAR: dict[str, Any] = {"temperature": 0, "regex": "[0-9 ]{8,64}"}


@dataclass(frozen=True, slots=True)
class Start:
    """One start: seconds until the engines were ready, and until all prompts were answered."""

    ready_s: float
    answers_s: float

    def __str__(self) -> str:
        return f"ready after {self.ready_s} s, then all answers in {self.answers_s} s"


@dataclass(frozen=True, slots=True)
class Report:
    """What the folder held before and holds now, and what both starts took."""

    plan: str
    folder: str
    files: tuple[int, int]
    mb: tuple[float, float]
    first: Start
    again: Start

    def lines(self) -> Iterator[str]:
        yield self.plan
        yield (
            f"kernels   {self.folder}: {self.files[0]} files, {self.mb[0]} MB →"
            f" {self.files[1]} files, {self.mb[1]} MB"
        )
        for name, start in (("first", self.first), ("again", self.again)):
            yield f"{name:<10}{start}"
        yield (
            f"Keep that folder ({kernel_cache.VARIABLE}) for every start:"
            " pd-eagle warm need not run again until the model, the plan or SGLang changes."
        )


def run(environ: Mapping[str, str], tell: Callable[[str], None]) -> Report | None:
    """Compile what the plan for `environ` needs; None on a CPU, where nothing is compiled.

    Raises `PdEagleError`.
    """
    settings = config.Settings.from_env(environ)
    inventory = devices.discover(settings.device, environ.get("CUDA_VISIBLE_DEVICES"))
    if inventory.kind == "cpu":
        return None
    vocab_size = models.load_shape(models.model_of(settings, inventory.kind)).vocab_size
    before = kernel_cache.size(environ)
    first, plan = _start(environ, vocab_size)
    tell(f"first: {first}")
    again, _ = _start(environ, vocab_size)
    after = kernel_cache.size(environ)
    mb = (round(before[1] / 1e6, 1), round(after[1] / 1e6, 1))
    folder = str(kernel_cache.folder(environ))
    return Report(plan, folder, (before[0], after[0]), mb, first, again)


def _start(environ: Mapping[str, str], vocab_size: int) -> tuple[Start, str]:
    began = time.monotonic()
    with PDEngine(**config.keywords(environ)) as engine:
        ready_s = time.monotonic() - began
        asyncio.run(_ask_all(engine, vocab_size))
        answers_s = time.monotonic() - began - ready_s
        return Start(round(ready_s, 1), round(answers_s, 1)), str(engine.plan)


async def _ask_all(engine: PDEngine, vocab_size: int) -> None:
    """Ask in batches of 1, 2, 4 and so on for each engine, then in the other ways."""
    engines = len(engine.plan.serving)
    largest = max((w["max_running"] or 1 for w in engine.health()["workers"]), default=1)
    draw = random.Random(0)
    size = 1
    while size <= min(largest, LARGEST_BATCH):
        await _ask(engine, draw, vocab_size, size * engines, _GREEDY)
        size *= 2
    for params in (_SAMPLED, _GRAMMAR):
        await _ask(engine, draw, vocab_size, 2 * engines, params)


async def _ask(
    engine: PDEngine, draw: random.Random, vocab_size: int, count: int, params: dict[str, Any]
) -> None:
    lengths = [PROMPT_TOKENS[n % len(PROMPT_TOKENS)] for n in range(min(count, _VARIED))]
    lengths += [PROMPT_TOKENS[0]] * (count - len(lengths))
    prompts = [[draw.randrange(vocab_size) for _ in range(length)] for length in lengths]
    asked = {"max_new_tokens": NEW_TOKENS, "ignore_eos": "regex" not in params} | params
    await asyncio.gather(
        *(engine.async_generate(input_ids=ids, sampling_params=asked) for ids in prompts)
    )
