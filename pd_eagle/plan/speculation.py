"""Estimates the speedup of EAGLE from the acceptance length and the measured cost of verification.

The costs are those of an H100 (`pd_eagle.plan.measured`). It knows no engine.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from pd_eagle.plan import measured

if TYPE_CHECKING:
    from pd_eagle.plan.devices import Kind
    from pd_eagle.plan.tuning import Tree


def cost_ratio(tree: Tree, at_once: float) -> float:
    """Return how many plain decode steps one draft and its verification take.

    A tree that was not measured costs in proportion to the tokens it verifies: the part above one
    plain step, of the chain's where it has one branch, of the documented tree's otherwise.
    """
    reference = measured.CHAIN if tree.topk == 1 else measured.TREE
    points = [(row.at_once, _cost(row, chain=tree.topk == 1)) for row in measured.SPECULATION]
    above_one = _between(points, at_once) - 1
    return 1 + above_one * tree.tokens / reference[2]


def _cost(row: measured.Speculation, *, chain: bool) -> float:
    return measured.TOKENS_A_VERIFICATION * row.off / (row.chain if chain else row.tree)


def _between(points: list[tuple[int, float]], at: float) -> float:
    """Interpolate linearly; outside the measured range take the nearest point."""
    for (left, low), (right, high) in pairwise(points):
        if at <= right:
            share = max(0.0, at - left) / (right - left)
            return low + share * (high - low)
    return points[-1][1]


def speedup(
    tree: Tree | None, kind: Kind, at_once: int, accept_length: float | None
) -> float | None:
    """Return the expected ratio of tokens/s with drafts to tokens/s without, by `accept_length`.

    Below 1 drafts slow the engine down. None without EAGLE, before any acceptance is known, and on
    the CPU, where the costs were not measured.
    """
    if tree is None or accept_length is None or kind == "cpu":
        return None
    return accept_length / cost_ratio(tree, max(at_once, 1))


def alarm(worker: str, tree: Tree, at_once: int, accept_length: float) -> str:
    """Return the warning that drafts slow `worker` down, with settings to try."""
    cost = cost_ratio(tree, max(at_once, 1))
    shorter = "unset SPECULATIVE_ALGORITHM"
    if tree.topk > 1:
        steps, topk, tokens = measured.CHAIN
        shorter = (
            f"SPECULATIVE_NUM_STEPS={steps} SPECULATIVE_EAGLE_TOPK={topk}"
            f" SPECULATIVE_NUM_DRAFT_TOKENS={tokens}, or {shorter}"
        )
    elif tree.steps > 1:
        shorter = f"SPECULATIVE_NUM_STEPS={tree.steps - 1} SPECULATIVE_EAGLE_TOPK=1, or {shorter}"
    return (
        f"EAGLE makes {worker} slower: {accept_length:.2f} tokens a verification, which costs"
        f" {cost:.2f} plain steps with {at_once} requests at once (measured on an H100); try"
        f" {shorter}"
    )
