"""Batched generation with a preallocated cache, made for thousands of short rows at once.

Rows are right-padded, so a token's place in the cache is its position. Finished rows go on costing
until enough of them are done, then the cache is compacted. Knows token ids only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tools.draft.target import Target

LOOK_EVERY = 16
"""Steps between two looks at who is done: a look makes the host wait for the device."""
KEEP_ABOVE = 0.75
"""Compact when fewer than this share of the rows is alive."""
PREFILL_TOKENS = 1 << 18
"""Prompt tokens that go through the model at once."""
ROUND_TO = 64
"""Attention reads the cache up to a multiple of this, for few different kernel shapes."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How to continue a prompt."""

    stop_id: int
    max_new: int
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest (Nguyen et al. 2024, 2407.01082)."""
    batch: int = 32
    """Most rows at once."""
    cache_tokens: int = 1 << 16
    """Most places in the cache, rows times their longest possible length."""


@dataclass(slots=True)
class _Wave:
    """The rows in flight; every tensor has the live rows as its batch dimension."""

    keys: list[Tensor]
    values: list[Tensor]
    places: Tensor
    temperatures: Tensor
    source: Tensor
    last: Tensor
    done: Tensor


def generate(
    target: Target,
    prompts: Sequence[Sequence[int]],
    temperatures: Sequence[float],
    decoding: Decoding,
    seed: int,
) -> list[list[int]]:
    """Continue every prompt up to its stop id (included) or ``max_new`` tokens.

    A temperature of 0 is greedy. The same seed, batch and device give the same answers.
    """
    noise = torch.Generator(target.device).manual_seed(seed)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[list[int]] = [[] for _ in prompts]
    for chunk in _chunks(order, [len(prompt) for prompt in prompts], decoding):
        rows = [prompts[i] for i in chunk]
        new = _run_wave(target, rows, [temperatures[i] for i in chunk], decoding, noise)
        for i, answer in zip(chunk, new, strict=True):
            answers[i] = _cut(answer, decoding.stop_id)
    return answers


def _chunks(order: list[int], lengths: list[int], decoding: Decoding) -> Iterator[list[int]]:
    """Yield waves of indices that fit; ``order`` is by length, so the last is the longest."""
    wave: list[int] = []
    for index in order:
        fits = (len(wave) + 1) * (lengths[index] + decoding.max_new) <= decoding.cache_tokens
        if wave and (len(wave) == decoding.batch or not fits):
            yield wave
            wave = []
        wave.append(index)
    if wave:
        yield wave


def _cut(answer: list[int], stop_id: int) -> list[int]:
    return answer[: answer.index(stop_id) + 1] if stop_id in answer else answer


def _run_wave(
    target: Target,
    rows: list[Sequence[int]],
    temperatures: list[float],
    decoding: Decoding,
    noise: torch.Generator,
) -> list[list[int]]:
    wave = _prefill(target, rows, temperatures, decoding, noise)
    out = torch.full((len(rows), decoding.max_new), decoding.stop_id, device=target.device)
    out[:, 0] = wave.last
    for step in range(1, decoding.max_new):
        if step % LOOK_EVERY == 0:
            alive = (~wave.done).nonzero().flatten()
            if not len(alive):
                break
            if len(alive) < KEEP_ABOVE * len(wave.done):
                wave = _compacted(wave, alive)
        _decode(target, wave, int(wave_end(rows, step)), decoding, noise)
        out[wave.source, step] = wave.last
    answers: list[list[int]] = out.tolist()
    return answers


def wave_end(rows: list[Sequence[int]], step: int) -> int:
    """Return how much of the cache a step may read, rounded up, without asking the device."""
    longest = max(len(row) for row in rows) + step
    return -(-longest // ROUND_TO) * ROUND_TO


def _prefill(
    target: Target,
    rows: list[Sequence[int]],
    temperatures: list[float],
    decoding: Decoding,
    noise: torch.Generator,
) -> _Wave:
    device, s = target.device, target.shape
    lengths = torch.tensor([len(row) for row in rows], device=device)
    size = (len(rows), s.kv_heads, wave_end(rows, decoding.max_new), s.head_dim)
    keys = [torch.zeros(size, device=device, dtype=target.embed.dtype) for _ in range(s.layers)]
    values = [torch.zeros_like(k) for k in keys]
    block = max(1, PREFILL_TOKENS // max(len(row) for row in rows))
    ends = [
        _read(target, rows[start : start + block], start, keys, values)
        for start in range(0, len(rows), block)
    ]
    heat = torch.tensor(temperatures, device=device)
    first = _pick(target.logits(torch.cat(ends)), heat, decoding.min_p, noise)
    everyone = torch.arange(len(rows), device=device)
    return _Wave(keys, values, lengths, heat, everyone, first, first == decoding.stop_id)


def _read(
    target: Target, rows: list[Sequence[int]], start: int, keys: list[Tensor], values: list[Tensor]
) -> Tensor:
    """Fill the cache of the rows from ``start`` on; return the state of each row's last token."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    ids = ids.to(target.device)
    part = slice(start, start + len(rows))

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys[layer][part, :, : k.shape[2]] = k
        values[layer][part, :, : v.shape[2]] = v
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    hidden = target.hidden(ids, torch.arange(ids.shape[1], device=ids.device)[None], attend)
    last = torch.tensor([len(row) - 1 for row in rows], device=ids.device)
    return hidden[torch.arange(len(rows), device=ids.device), last]


def _decode(
    target: Target, wave: _Wave, end: int, decoding: Decoding, noise: torch.Generator
) -> None:
    rows = torch.arange(len(wave.last), device=target.device)
    seen = torch.arange(end, device=target.device) <= wave.places[:, None]
    bias = torch.zeros(seen.shape, device=target.device, dtype=target.embed.dtype)
    bias = bias.masked_fill(~seen, float("-inf"))[:, None, None]

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        wave.keys[layer][rows, :, wave.places] = k[:, :, 0]
        wave.values[layer][rows, :, wave.places] = v[:, :, 0]
        # the queries of one KV head as one block: the cache is read once, not once per query head
        folded = q.view(len(rows), target.shape.kv_heads, -1, target.shape.head_dim)
        k, v = wave.keys[layer][:, :, :end], wave.values[layer][:, :, :end]
        mask = bias.expand(-1, folded.shape[1], folded.shape[2], -1)
        return F.scaled_dot_product_attention(folded, k, v, attn_mask=mask).view(q.shape)

    hidden = target.hidden(wave.last[:, None], wave.places[:, None], attend)
    wave.last = _pick(target.logits(hidden[:, 0]), wave.temperatures, decoding.min_p, noise)
    wave.done |= wave.last == decoding.stop_id
    wave.places = wave.places + 1


def _pick(logits: Tensor, temperatures: Tensor, min_p: float, noise: torch.Generator) -> Tensor:
    """Sample by the Gumbel trick: one argmax for greedy and sampled rows alike."""
    heat = temperatures[:, None]
    scaled = logits.float() / heat.clamp(min=1e-4)
    if min_p > 0:
        floor = scaled.amax(dim=-1, keepdim=True) + torch.tensor(min_p).log()
        scaled = scaled.masked_fill(scaled < floor, float("-inf"))
    exponential = torch.empty_like(scaled).exponential_(generator=noise)
    return torch.where(heat > 0, scaled - exponential.log(), logits.float()).argmax(dim=-1)


def _compacted(wave: _Wave, alive: Tensor) -> _Wave:
    for cache in (wave.keys, wave.values):
        for layer, tensor in enumerate(cache):
            cache[layer] = tensor[alive]
    return _Wave(
        wave.keys,
        wave.values,
        wave.places[alive],
        wave.temperatures[alive],
        wave.source[alive],
        wave.last[alive],
        wave.done[alive],
    )
