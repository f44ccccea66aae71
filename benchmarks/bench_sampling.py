"""Are sampled tokens drawn from the model's own distribution, with EAGLE and without?

20,000 requests of one prompt to a model with a tiny vocabulary, at temperature 0.8: the pairs of
first and second token are counted and compared, by Pearson's chi-squared, with what transformers
says their probabilities are, and with and without EAGLE with each other. The second token is the
first that a verification yields. Ends with code 1 where p < 0.001.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import LlamaForCausalLM

from benchmarks.bench_eagle import DEFAULT_TREE, Model, Tree, start
from benchmarks.provenance import conclude, log_to_file, tell
from tests.tiny_models import tiny_draft, tiny_model

if TYPE_CHECKING:
    from pd_eagle import PDEngine

VOCAB = 24
TEMPERATURE = 0.8
PROMPT = [5, 3, 7]
LEAST_P = 0.001


def expected(target: Path) -> torch.Tensor:
    """Return the probability of each pair of first and second token, shape [VOCAB, VOCAB]."""
    model = LlamaForCausalLM.from_pretrained(target, dtype=torch.float32)
    prompts = torch.tensor([[*PROMPT, first] for first in range(VOCAB)])
    with torch.no_grad():
        probs = (model(prompts).logits.double() / TEMPERATURE).softmax(-1)
    return probs[0, -2][:, None] * probs[:, -1]


async def draw(engine: PDEngine, count: int) -> torch.Tensor:
    """Return the count of each pair of tokens, shape [VOCAB, VOCAB]."""
    counts = torch.zeros(VOCAB, VOCAB, dtype=torch.int64)
    params = {"temperature": TEMPERATURE, "max_new_tokens": 4, "ignore_eos": True}
    slots = asyncio.Semaphore(256)

    async def one(number: int) -> None:
        async with slots:
            result = await engine.async_generate(input_ids=PROMPT, sampling_params=params)
        first, second = result["output_ids"][:2]
        counts[first, second] += 1
        if number % 2000 == 1999:
            tell(f"{number + 1} of {count} requests")

    await asyncio.gather(*(one(number) for number in range(count)))
    return counts


def chi_squared(observed: torch.Tensor, probs: torch.Tensor) -> dict[str, float]:
    """Return Pearson's statistic, its degrees of freedom and p; rare pairs are pooled."""
    seen, mean = observed.flatten().double(), probs.flatten() * observed.sum()
    often = mean >= 5
    seen = torch.cat((seen[often], seen[~often].sum()[None]))
    mean = torch.cat((mean[often], mean[~often].sum()[None]))
    return _p_of(float(((seen - mean) ** 2 / mean).sum()), len(seen) - 1)


def homogeneity(one: torch.Tensor, other: torch.Tensor) -> dict[str, float]:
    """Return the same for the test of homogeneity of two rows of counts with equal sums."""
    a, b = one.flatten().double(), other.flatten().double()
    often = a + b >= 10
    a = torch.cat((a[often], a[~often].sum()[None]))
    b = torch.cat((b[often], b[~often].sum()[None]))
    return _p_of(float(((a - b) ** 2 / (a + b).clamp(min=1)).sum()), len(a) - 1)


def _p_of(statistic: float, freedom: int) -> dict[str, float]:
    half = torch.tensor(freedom / 2, dtype=torch.float64)
    p = torch.special.gammaincc(half, torch.tensor(statistic / 2, dtype=torch.float64))
    return {"chi_squared": round(statistic, 2), "freedom": freedom, "p": round(float(p), 5)}


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    count = 500 if arguments.quick else 20_000
    target = tiny_model(folder / "target", vocab=VOCAB)
    draft = tiny_draft(folder / "draft", target)
    model = Model(
        "tiny", {"model_path": str(target)}, {"speculative_draft_model_path": str(draft)}, []
    )
    counts: dict[str, torch.Tensor] = {}
    trees: dict[str, Tree | None] = {"without_eagle": None, "with_eagle": DEFAULT_TREE}
    for name, tree in trees.items():
        tell(name)
        with start(model, arguments.mode, tree, "float32") as engine:
            counts[name] = asyncio.run(draw(engine, count))
    tests = _tests(counts, expected(target))
    summary = {
        "draws_each": count,
        "temperature": TEMPERATURE,
        "tree": DEFAULT_TREE,
        "mode": arguments.mode,
        "pairs_possible": VOCAB**2,
        **tests,
    }
    judged = [*tests["against_the_model"].values(), tests["against_each_other"]]
    raw = {name: seen.tolist() for name, seen in counts.items()}
    return {"summary": summary, "counts": raw, "wrong": sum(one["p"] < LEAST_P for one in judged)}


def _tests(counts: dict[str, torch.Tensor], probs: torch.Tensor) -> dict[str, Any]:
    # A check of the test's power: draws against the distribution at temperature 0.9 must fail it.
    warmer = probs ** (TEMPERATURE / 0.9)
    eagle = counts["with_eagle"]
    return {
        "against_the_model": {name: chi_squared(seen, probs) for name, seen in counts.items()},
        "against_each_other": homogeneity(eagle, counts["without_eagle"]),
        "against_temperature_0.9": chi_squared(eagle, warmer / warmer.sum()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=("unified", "nixl", "mooncake"), default="unified")
    parser.add_argument("--quick", action="store_true", help="a smoke run; not kept")
    arguments = parser.parse_args()
    log_to_file("bench_sampling")
    with tempfile.TemporaryDirectory() as folder:
        return conclude("eagle_sampling", measure(arguments, Path(folder)), arguments)


if __name__ == "__main__":
    sys.exit(main())
