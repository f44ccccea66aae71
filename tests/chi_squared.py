"""How surprising counted draws are; knows nothing of what was drawn."""

from __future__ import annotations

import torch


def surprise(observed: torch.Tensor, expected: torch.Tensor) -> float:
    """Return Pearson's chi-squared in standard deviations above its mean.

    `observed` and `expected` are counts [outcomes]; outcomes expected fewer than 20 times count as
    one. What cannot happen but did is infinitely surprising.
    """
    observed, expected = observed.double(), expected.double()
    if bool((observed[expected < 1e-6] > 0).any()):
        return float("inf")
    often = expected >= 20
    groups = [(observed[often], expected[often])]
    if float(expected[~often].sum()) > 1:
        groups.append((observed[~often].sum()[None], expected[~often].sum()[None]))
    parts = [(seen - mean) ** 2 / mean for seen, mean in groups]
    statistic = torch.cat(parts)
    freedom = max(len(statistic) - 1, 1)
    return float((statistic.sum() - freedom) / (2 * freedom) ** 0.5)
