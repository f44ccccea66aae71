"""Attention of one padded batch over a KV pool, in one call of SDPA; does not know why a query may
see a key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import scaled_dot_product_attention

from pd_eagle.cpu.attention_plan import MOST_PADDED_QUERIES

if TYPE_CHECKING:
    from torch import Tensor

    from pd_eagle.cpu.attention_plan import Block


@dataclass(frozen=True, slots=True)
class Scores:
    """How a layer scores keys: q k^T * `scale`, over the last `window` positions before the query's
    own (negative: all), soft-capped at `cap` (0: not at all) as Gemma 2 does it.
    """

    scale: float
    window: int = -1
    cap: float = 0.0


def attend(queries: Tensor, keys: Tensor, values: Tensor, block: Block, scores: Scores) -> Tensor:
    """Return softmax(scores) v of one block.

    `queries` [requests * queries, heads, width]; `keys` and `values` are the whole pool
    [slots, KV heads, width], of any dtype; the result has the shape and dtype of the queries.
    """
    requests, count = block.query_positions.shape
    k, v = (_gather(pool, block.slots).to(queries.dtype) for pool in (keys, values))
    q = queries.view(requests, count, *queries.shape[1:]).transpose(1, 2)
    if count <= MOST_PADDED_QUERIES or scores.cap:
        output = _folded(q, k, v, block, scores)
    elif block.is_whole_prompt and scores.window < 0:
        output = scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scores.scale, enable_gqa=True
        )
    else:
        mask = block.mask(1, scores.window)
        output = scaled_dot_product_attention(q, k, v, mask, scale=scores.scale, enable_gqa=True)
    return output.transpose(1, 2).flatten(0, 1)


def _folded(q: Tensor, k: Tensor, v: Tensor, block: Block, scores: Scores) -> Tensor:
    """Attend with the query heads that share a KV head as further queries of that head.

    With few queries per request this is up to ten times `enable_gqa`, which reads every key once
    per query head (torch 2.14, CPU, bfloat16).
    """
    requests, heads, count, _ = q.shape
    group = heads // k.shape[1]
    folded = q.reshape(requests, k.shape[1], group * count, q.shape[3])
    mask = block.mask(group, scores.window)
    if scores.cap:
        output = _capped(folded, k, v, mask, scores)
    else:
        output = scaled_dot_product_attention(folded, k, v, mask, scale=scores.scale)
    return output.reshape(requests, heads, count, v.shape[3])


def _capped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scores: Scores) -> Tensor:
    """Attend step by step: SDPA knows no soft cap (Gemma 2, arXiv 2408.00118, section 2)."""
    logits = (q @ k.transpose(2, 3)).float() * scores.scale
    logits = (logits / scores.cap).tanh() * scores.cap
    weights = logits.masked_fill(~mask, -torch.inf).softmax(-1)
    return weights.to(v.dtype) @ v


def _gather(pool: Tensor, slots: Tensor) -> Tensor:
    # index_select is several times faster here than pool[slots].
    rows = pool.index_select(0, slots.flatten())
    return rows.view(*slots.shape, *pool.shape[1:]).transpose(1, 2)
