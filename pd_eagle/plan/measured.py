"""Measurements on GPUs with their source; defaults and advice are derived from them.

One row is one run: differences under 5 % are noise. It knows no settings and no plan.
"""

from __future__ import annotations

from dataclasses import dataclass

GPU = "H100"
SOURCE = (
    "two NVIDIA H100 80GB HBM3 of one host, commit a22d01b, SGLang 0.5.23, Qwen2.5-7B's shape with"
    " dummy weights, fa3; benchmarks/results/gpu/two-h100-a22d01b.json"
)
#: The model's shape in all of it.
MODEL = "Qwen/Qwen2.5-7B-Instruct"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Two unified engines at a chunk size: the goodput, in requests/s, at each latency level.

    Prompts of 6,000 tokens, answers of 64, first token within 2 s; the levels are the mean and the
    longest time between tokens, in milliseconds.
    """

    tokens: int
    mixed: bool
    mean_40_ms: float
    longest_50_ms: float
    mean_20_ms: float
    mean_10_ms: float


CHUNKS = (
    Chunk(8192, False, 7.1, 1.4, 5.5, 2.3),  # SGLang's own
    Chunk(2048, True, 8.8, 1.4, 7.1, 2.4),
    Chunk(1024, True, 11.3, 11.3, 7.1, 2.5),
)
#: One prefill and one decode engine of the same, at every level.
PD_ANSWERS_PER_S = 6.1


def best_chunk() -> Chunk:
    """Return the row with the highest goodput, by the loosest level first."""
    return max(CHUNKS, key=lambda row: (row.mean_40_ms, row.longest_50_ms, row.mean_20_ms))


@dataclass(frozen=True, slots=True)
class Speculation:
    """Tokens/s of one engine by concurrent requests; acceptance length 2.5 (simulated)."""

    at_once: int
    off: float
    tree: float
    chain: float


#: Steps, branches, tokens verified.
TREE = (2, 6, 10)
CHAIN = (3, 1, 4)
TOKENS_A_VERIFICATION = 2.5
SPECULATION = (
    Speculation(1, 166.0, 279.0, 312.0),
    Speculation(16, 2464.0, 3561.0, 4143.0),
    Speculation(64, 8588.0, 6569.0, 12780.0),
)

#: One prefill engine of TP 1, saturated with prompts of 6,000 tokens: 6.4 a second.
PREFILL_TOKENS_PER_S = 6.4 * 6000


@dataclass(frozen=True, slots=True)
class Step:
    """A decode engine of TP 1: mean time between tokens with `at_once` requests in it."""

    at_once: float
    context_tokens: int
    gap_ms: float


#: PD, prompts of 300 tokens and answers of 100, at 48 and 96 a second: requests in decode are
#: requests/s × 100 tokens × the gap.
STEPS = (Step(46.05 * 100 * 0.0067, 350, 6.7), Step(87.91 * 100 * 0.0072, 350, 7.2))
