"""The draft tree: each node's ancestors, and the walk down it that verification takes; knows
nothing of probabilities or of caches.

Method: EAGLE-2 (arXiv 2406.16858). Signatures and layouts are those of SGLang 0.5.23,
`kernels/ops/speculative/spec_tree.py`, whose kernels are for GPUs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ROOT = 0
NONE = -1


def build_tree(
    parent_list: Tensor,
    top_scores_index: Tensor,
    seq_lens: Tensor,
    tree_mask: Tensor,
    positions: Tensor,
    retrieve_index: Tensor,
    retrieve_next_token: Tensor,
    retrieve_next_sibling: Tensor,
    topk: int,
    spec_steps: int,
    num_verify_tokens: int,
    tree_mask_mode: Any,
) -> None:
    """Fill the six output tensors with the trees of a batch.

    `top_scores_index` [requests, nodes - 1] are the chosen candidates, `parent_list` the candidate
    above each group of `topk` candidates. `tree_mask` gets [requests, nodes, nodes] from its
    start, `positions` the depth of each node after its request's length.
    """
    if tree_mask_mode.name != "QLEN_ONLY":
        raise NotImplementedError(
            f"the CPU platform writes nodes x nodes, not {tree_mask_mode.name}"
        )
    requests, nodes = len(seq_lens), num_verify_tokens
    parents = parents_of(parent_list, top_scores_index, topk)
    ancestry = ancestry_of(parents, spec_steps)
    # A node sees the root, also where its own parent was not chosen and the chain breaks.
    ancestry_and_root = ancestry.clone()
    ancestry_and_root[:, :, ROOT] = True
    tree_mask[: requests * nodes * nodes] = ancestry_and_root.flatten()
    depths = ancestry[:, :, 1:].sum(2)
    positions.view(requests, nodes)[:] = seq_lens.unsqueeze(1) + depths
    retrieve_index[:] = torch.arange(requests * nodes).view(requests, nodes)
    first, following = links_of(parents)
    retrieve_next_token[:] = first
    retrieve_next_sibling[:] = following


def parents_of(parent_list: Tensor, chosen: Tensor, topk: int) -> Tensor:
    """Return the parent node of every node, [requests, nodes]; NONE for the root.

    Also NONE where the parent was not chosen: equal scores of parent and child can do that.
    """
    group = chosen // topk
    if parent_list.shape[1] == 0:
        found, position = torch.zeros_like(chosen, dtype=torch.bool), chosen
    else:
        same = parent_list.gather(1, group).unsqueeze(2) == chosen.unsqueeze(1)
        found, position = same.any(2), same.int().argmax(2)
    parents = torch.where(found, position + 1, NONE).masked_fill(group == 0, ROOT)
    return torch.nn.functional.pad(parents, (1, 0), value=NONE)


def ancestry_of(parents: Tensor, steps: int) -> Tensor:
    """Return which nodes are a node's ancestors or itself, bool [requests, nodes, nodes]."""
    requests, nodes = parents.shape
    order = torch.arange(nodes)
    ancestry = torch.eye(nodes, dtype=torch.bool).repeat(requests, 1, 1)
    current = parents
    for _ in range(steps):
        ancestry |= current.unsqueeze(2) == order
        above = parents.gather(1, current.clamp(min=ROOT))
        current = torch.where(current == NONE, NONE, above)
    return ancestry


def links_of(parents: Tensor) -> tuple[Tensor, Tensor]:
    """Return every node's first child and next sibling, NONE where there is none."""
    nodes = parents.shape[1]
    order = torch.arange(nodes)
    is_child = parents.unsqueeze(1) == order.view(1, -1, 1)
    same_parent = parents.unsqueeze(1) == parents.unsqueeze(2)
    later = (order.view(1, -1) > order.view(-1, 1)) & (parents != NONE).unsqueeze(2)
    return _first(is_child), _first(same_parent & later)


def _first(candidates: Tensor) -> Tensor:
    return torch.where(candidates.any(2), candidates.int().argmax(2), NONE)


def walk(
    first_child: Sequence[int],
    next_sibling: Sequence[int],
    most: int,
    choose: Callable[[int, list[int]], int | None],
) -> tuple[list[int], list[int]]:
    """Go down from the root to the child that `choose(node, children)` names, until it names none.

    Returns the path, at most `most` nodes with the root, and the children that were refused at
    its end.
    """
    path = [ROOT]
    while len(path) < most:
        children = _children(first_child, next_sibling, path[-1])
        child = choose(path[-1], children)
        if child is None:
            return path, children
        path.append(child)
    return path, []


def _children(first_child: Sequence[int], next_sibling: Sequence[int], node: int) -> list[int]:
    children = []
    child = first_child[node]
    while child != NONE:
        children.append(child)
        child = next_sibling[child]
    return children


def verify_greedy(
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    candidates: Tensor,
    retrieve_index: Tensor,
    retrieve_next_token: Tensor,
    retrieve_next_sibling: Tensor,
    target_predict: Tensor,
    topk: int = -1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Accept the longest path on which every token is the target's own choice.

    Fills and returns the first three: the token after every accepted node, the accepted nodes of
    each request, and how many drafts that is without the root.
    """
    trees = zip(
        candidates.tolist(),
        retrieve_next_token.tolist(),
        retrieve_next_sibling.tolist(),
        target_predict.tolist(),
        strict=True,
    )
    for request, (tokens, first, following, wanted) in enumerate(trees):
        path, _ = walk(first, following, accept_index.shape[1], _greedy(tokens, wanted))
        nodes = retrieve_index[request, path]
        predicts[nodes] = target_predict[request, path].to(predicts.dtype)
        accept_index[request, : len(path)] = nodes.to(accept_index.dtype)
        accept_token_num[request] = len(path) - 1
    return predicts, accept_index, accept_token_num


def _greedy(tokens: list[int], wanted: list[int]) -> Callable[[int, list[int]], int | None]:
    def choose(node: int, children: list[int]) -> int | None:
        return next((child for child in children if tokens[child] == wanted[node]), None)

    return choose
