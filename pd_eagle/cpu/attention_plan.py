"""Which cached tokens each query of a forward pass may see, as a few padded batches of torch
tensors; knows nothing of SGLang, of layers or of heads.

Words: a *slot* is a token's place in the KV pool, `table[request, position]` its slot.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

# Up to here, requests with equally many queries are padded to one batch; above, the masks that
# this needs cost more than the separate calls that it saves.
MOST_PADDED_QUERIES = 64


@dataclass(frozen=True, slots=True)
class Block:
    """Requests with equally many queries each, padded to one batch of keys.

    `tokens` are their rows in the flat batch; `slots` [requests, keys]; `query_positions`
    [requests, queries] and `key_positions` [requests, keys] count from the start of the sequence.
    A query sees the keys at or before its own position, and of those only what `allowed`
    [requests, queries, keys] says, if given. Padding lies after every query.
    """

    tokens: slice
    slots: Tensor
    query_positions: Tensor
    key_positions: Tensor
    allowed: Tensor | None = None
    _masks: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    @property
    def is_whole_prompt(self) -> bool:
        """Whether this is one request from its first token on, so that plain causality holds."""
        one = self.slots.shape[0] == 1 and self.allowed is None
        return one and self.slots.shape[1] == self.query_positions.shape[1]

    def mask(self, repeat: int, window: int) -> Tensor:
        """Return which query sees which key, bool [requests, 1, repeat * queries, keys]; cached.

        `window` is how many positions back a query sees; negative means all.
        """
        key = (repeat, window)
        if key not in self._masks:
            self._masks[key] = self._visible(window).repeat(1, repeat, 1).unsqueeze(1)
        return self._masks[key]

    def _visible(self, window: int) -> Tensor:
        distance = self.query_positions.unsqueeze(2) - self.key_positions.unsqueeze(1)
        visible = distance >= 0
        if window >= 0:
            visible &= distance <= window
        return visible if self.allowed is None else visible & self.allowed


def decode_plan(table: Tensor, requests: Tensor, lengths: Tensor) -> list[Block]:
    """Plan one new token for each request; `lengths` include it."""
    return [_padded(table, requests, lengths, 1)] if len(requests) else []


def extend_plan(table: Tensor, requests: Tensor, lengths: Tensor, counts: Tensor) -> list[Block]:
    """Plan the last `counts` tokens of each request; `lengths` include them."""
    if len(requests) == 0:
        return []
    count = int(counts[0])
    if count <= MOST_PADDED_QUERIES and bool((counts == count).all()):
        return [_padded(table, requests, lengths, count)]
    starts = [0, *counts.cumsum(0).tolist()]
    return [
        _padded(
            table, requests[i : i + 1], lengths[i : i + 1], starts[i + 1] - starts[i], starts[i]
        )
        for i in range(len(requests))
    ]


def verify_plan(
    table: Tensor, requests: Tensor, prefixes: Tensor, tree: Tensor, depths: Tensor
) -> list[Block]:
    """Plan a tree of draft tokens after each prefix.

    `tree` [requests, nodes, nodes] says which nodes are a node's ancestors or itself; `depths`
    [requests, nodes] counts from the root's 0. Node i lies in the slot at prefix + i.
    """
    keys = _keys(int(prefixes.max()) + tree.shape[1])
    node = keys - prefixes.unsqueeze(1)
    inside = (node >= 0) & (node < tree.shape[1])
    index = node.clamp(0, tree.shape[1] - 1)
    seen = tree.gather(2, index.unsqueeze(1).expand(-1, tree.shape[1], -1))
    return [
        Block(
            tokens=slice(0, tree.shape[0] * tree.shape[1]),
            slots=table[requests, : keys.shape[1]],
            query_positions=prefixes.unsqueeze(1) + depths,
            key_positions=torch.where(
                inside, prefixes.unsqueeze(1) + depths.gather(1, index), keys
            ),
            allowed=seen | ~inside.unsqueeze(1),
        )
    ]


def draft_plan(
    table: Tensor, requests: Tensor, prefixes: Tensor, branches: int, steps: int, step: int
) -> list[Block]:
    """Plan one draft step of every branch after each prefix.

    Branch t writes its step s to the slot at prefix + t * steps + s (SGLang 0.5.23,
    `per_step_draft_out_cache_loc`), and sees the prefix and its own steps so far.
    """
    keys = _keys(int(prefixes.max()) + branches * steps)
    drafted = keys - prefixes.unsqueeze(1)
    branch = torch.arange(branches).view(1, -1, 1)
    own = drafted.unsqueeze(1).div(steps, rounding_mode="floor") == branch
    return [
        Block(
            tokens=slice(0, len(requests) * branches),
            slots=table[requests, : keys.shape[1]],
            query_positions=(prefixes + step).unsqueeze(1).expand(-1, branches),
            key_positions=torch.where(drafted >= 0, prefixes.unsqueeze(1) + drafted % steps, keys),
            allowed=own | (drafted < 0).unsqueeze(1),
        )
    ]


def _keys(count: int) -> Tensor:
    return torch.arange(count).unsqueeze(0)


def _padded(
    table: Tensor, requests: Tensor, lengths: Tensor, queries: int, start: int = 0
) -> Block:
    keys = _keys(int(lengths.max()))
    return Block(
        tokens=slice(start, start + len(requests) * queries),
        slots=table[requests, : keys.shape[1]],
        query_positions=(lengths - queries).unsqueeze(1) + torch.arange(queries),
        key_positions=keys.expand(len(requests), -1),
    )
