"""Where in the KV pool speculative decoding reads and writes, computed with torch; knows nothing
of trees or of layers.

Signatures are those of SGLang 0.5.23, whose versions are Triton kernels. `req_to_token`
[requests, positions] holds the slot of every token.
"""

from __future__ import annotations

import torch
from torch import Tensor


def extend_cache_locs(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    start_offset: Tensor,
    end_offset: Tensor,
    batch_size: int,
    draft_token_num: int,
    device: object,
) -> Tensor:
    """Return the slots of positions start..end of each request, one after the other."""
    rows, columns = _spans(req_pool_indices, start_offset, end_offset)
    slots = torch.empty(batch_size * draft_token_num, dtype=torch.int64)
    slots[: len(rows)] = req_to_token[rows, columns].long()
    return slots


def assign_req_to_token_pool(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    start_offset: Tensor,
    end_offset: Tensor,
    out_cache_loc: Tensor,
    batch_size: int,
) -> None:
    """Write the slots `out_cache_loc` to positions start..end of each request in turn."""
    rows, columns = _spans(req_pool_indices, start_offset, end_offset)
    req_to_token[rows, columns] = out_cache_loc[: len(rows)].to(req_to_token.dtype)


def draft_cache_locs(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    seq_lens: Tensor,
    out_cache_loc: Tensor,
    topk: int,
    num_cols: int,
    positions: Tensor | None = None,
    mrope: Tensor | None = None,
) -> None:
    """Write the `topk * num_cols` slots after each request's length to `out_cache_loc`."""
    if positions is not None or mrope is not None:
        raise NotImplementedError("SGLang asks for positions here on CUDA only")
    ends = seq_lens + topk * num_cols
    rows, columns = _spans(req_pool_indices, seq_lens, ends)
    out_cache_loc[:] = req_to_token[rows, columns].long()


def front_cache_locs(num_front: Tensor, out_cache_loc: Tensor, front_out_cache_loc: Tensor) -> None:
    """Pack the first `num_front` slots of each request's equal share of `out_cache_loc`."""
    window = out_cache_loc.view(len(num_front), -1)
    packed = window[torch.arange(window.shape[1]) < num_front.unsqueeze(1)]
    front_out_cache_loc[: len(packed)] = packed


def accepted_cache_locs(
    accept_index: Tensor, out_cache_loc: Tensor, accept_out_cache_loc: Tensor, size: int
) -> None:
    """Pack the slots of the accepted nodes; -1 in `accept_index` is no node."""
    accepted = accept_index.flatten()[:size]
    packed = out_cache_loc[accepted[accepted >= 0].long()]
    accept_out_cache_loc[: len(packed)] = packed


def bonus_tokens(
    accept_tokens: Tensor,
    accept_lens: Tensor,
    bonus_tokens: Tensor,
    accept_stride: int,
    batch_size: int,
) -> None:
    """Write the last accepted token of each request."""
    rows = accept_tokens.view(batch_size, accept_stride)
    last = rows.gather(1, accept_lens.long().unsqueeze(1) - 1).squeeze(1)
    bonus_tokens[:] = last.to(bonus_tokens.dtype)


def _spans(requests: Tensor, starts: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Return row and column of every position start..end, request by request."""
    lengths = (ends - starts).long()
    begins = lengths.cumsum(0) - lengths
    steps = torch.arange(int(lengths.sum())) - begins.repeat_interleave(lengths)
    rows = requests.long().repeat_interleave(lengths)
    return rows, steps + starts.long().repeat_interleave(lengths)
