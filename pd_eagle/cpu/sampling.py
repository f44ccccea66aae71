"""Sampling that keeps the target's distribution exactly: tree verification, top-k and top-p;
knows nothing of models or of caches.

Method: SGLang's "target only" tree sampling. At a node one coin chooses among its children, each
with the target's probability of its token; if none is chosen, the next token is drawn from what
is left of the distribution. So every token has the target's probability, whatever was drafted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pd_eagle.cpu.tree import walk

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def verify_sampling(
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    candidates: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    uniform_samples: Tensor,
    uniform_samples_for_final_sampling: Tensor,
    target_probs: Tensor,
    draft_probs: Tensor,
    threshold_single: float = 1.0,
    threshold_acc: float = 1.0,
    deterministic: bool = True,
) -> None:
    """Fill the first three as `verify_greedy` does, drawing from `target_probs`.

    `target_probs` [requests, nodes, vocabulary]; one coin a node, and one a request for the last
    token. A child is also accepted when its token has at least `threshold_single`; thresholds
    below 1 trade exactness for longer paths. SGLang 0.5.23 spells "retrive" so.
    """
    # [requests, node, child]: the probability at a node of every other node's token
    choices = target_probs.gather(
        2, candidates.unsqueeze(1).expand(-1, candidates.shape[1], -1).long()
    )
    trees = zip(
        choices.tolist(),
        uniform_samples.tolist(),
        retrive_next_token.tolist(),
        retrive_next_sibling.tolist(),
        strict=True,
    )
    rests, last = target_probs.new_empty(len(candidates), target_probs.shape[2]), []
    for request, (chances, coins, first, following) in enumerate(trees):
        choose = _drawn(chances, coins, threshold_single, threshold_acc)
        path, refused = walk(first, following, accept_index.shape[1], choose)
        rests[request] = _rest(target_probs[request, path[-1]], candidates[request, refused])
        nodes = retrive_index[request, path]
        predicts[nodes[:-1]] = candidates[request, path[1:]].to(predicts.dtype)
        accept_index[request, : len(path)] = nodes.to(accept_index.dtype)
        accept_token_num[request] = len(path) - 1
        last.append(int(nodes[-1]))
    predicts[last] = draw(rests, uniform_samples_for_final_sampling).to(predicts.dtype)


def draw(weights: Tensor, coins: Tensor) -> Tensor:
    """Return one index a row with a probability proportional to its weight.

    `coins` in [0, 1) decide: the inverse of the cumulative distribution, in float64 because
    float32 loses small weights among tens of thousands.
    """
    cumulative = weights.double().cumsum(1)
    total = cumulative[:, -1:].contiguous()
    drawn = torch.searchsorted(cumulative, coins.double().unsqueeze(1) * total, right=True)
    # Rounding can make the product equal the total.
    return torch.minimum(drawn, torch.searchsorted(cumulative, total)).squeeze(1)


def top_k_renorm(probs: Tensor, top_ks: Tensor) -> Tensor:
    """Keep the `top_ks` most probable tokens of each row and scale them to 1.

    Of equal tokens the first is kept, as argmax does: a greedy request is one with k = 1, and
    must get the same token here as in a batch that is greedy throughout.
    """
    kept = probs.clone()
    vocabulary = probs.shape[1]
    for k in top_ks.unique().tolist():
        if k < vocabulary:
            rows = (top_ks == k).nonzero().squeeze(1)
            kept[rows] = _only_top(probs[rows], int(k))
    return kept / kept.sum(1, keepdim=True)


def top_p_renorm(probs: Tensor, top_ps: Tensor) -> Tensor:
    """Keep a row's most probable tokens until those before one exceed `top_ps`; scale to 1.

    SGLang's own sampler (0.5.23) cuts at the same place.
    """
    rows = (top_ps < 1).nonzero().squeeze(1)
    if len(rows) == 0:
        return probs
    sorted_probs, order = probs[rows].sort(dim=1, descending=True, stable=True)
    before = sorted_probs.double().cumsum(1) - sorted_probs.double()
    sorted_probs = sorted_probs.masked_fill(before > top_ps[rows].unsqueeze(1), 0)
    kept = probs.clone()
    kept[rows] = torch.zeros_like(sorted_probs).scatter_(1, order, sorted_probs)
    return kept / kept.sum(1, keepdim=True)


def _only_top(probs: Tensor, k: int) -> Tensor:
    if k == 1:
        kept = probs.argmax(1, keepdim=True)
    else:
        kept = probs.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return torch.zeros_like(probs).scatter_(1, kept, probs.gather(1, kept))


def _drawn(
    chances: list[list[float]], coins: list[float], threshold_single: float, threshold_acc: float
) -> Callable[[int, list[int]], int | None]:
    def choose(node: int, children: list[int]) -> int | None:
        cumulative = 0.0
        for child in children:
            cumulative += chances[node][child]
            if coins[node] < cumulative / threshold_acc or chances[node][child] >= threshold_single:
                return child
        return None

    return choose


def _rest(probs: Tensor, refused: Tensor) -> Tensor:
    rest = probs.index_fill(0, refused.long(), 0)
    # Children that hold all of it are refused only by rounding.
    return rest if bool(rest.any()) else probs
