"""Attention of one padded batch over a KV pool, in one call of SDPA; does not know why a query may
see what it sees.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn.functional import scaled_dot_product_attention

from pd_eagle.cpu.attention_plan import MOST_PADDED_QUERIES

if TYPE_CHECKING:
    from torch import Tensor

    from pd_eagle.cpu.attention_plan import Block


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, block: Block, scale: float, window: int = -1
) -> Tensor:
    """Return softmax(q k^T * scale) v of one block.

    `queries` [requests * queries, heads, width]; `keys` and `values` are the whole pool
    [slots, KV heads, width], of any dtype; the result has the shape and dtype of the queries.
    """
    requests, count = block.query_positions.shape
    k, v = (_gather(pool, block.slots).to(queries.dtype) for pool in (keys, values))
    q = queries.view(requests, count, *queries.shape[1:]).transpose(1, 2)
    if count <= MOST_PADDED_QUERIES:
        output = _folded(q, k, v, block, scale, window)
    elif block.is_whole_prompt and window < 0:
        output = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
    else:
        mask = block.mask(1, window)
        output = scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)
    return output.transpose(1, 2).flatten(0, 1)


def _folded(q: Tensor, k: Tensor, v: Tensor, block: Block, scale: float, window: int) -> Tensor:
    """Attend with the query heads that share a KV head as further queries of that head.

    With few queries per request this is up to ten times `enable_gqa`, which reads every key once
    per query head (torch 2.14, CPU, bfloat16).
    """
    requests, heads, count, _ = q.shape
    group = heads // k.shape[1]
    folded = q.reshape(requests, k.shape[1], group * count, q.shape[3])
    output = scaled_dot_product_attention(folded, k, v, block.mask(group, window), scale=scale)
    return output.reshape(requests, heads, count, v.shape[3])


def _gather(pool: Tensor, slots: Tensor) -> Tensor:
    # index_select is several times faster here than pool[slots].
    rows = pool.index_select(0, slots.flatten())
    return rows.view(*slots.shape, *pool.shape[1:]).transpose(1, 2)
