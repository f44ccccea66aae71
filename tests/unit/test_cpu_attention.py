"""Planned, padded and folded attention equals attention computed query by query."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from pd_eagle.cpu.attention_plan import (
    MOST_PADDED_QUERIES,
    Block,
    decode_plan,
    draft_plan,
    extend_plan,
    verify_plan,
)
from pd_eagle.cpu.elementwise import add_gated, softcap
from pd_eagle.cpu.padded_sdpa import Scores, attend
from pd_eagle.cpu.tree import ancestry_of
from pd_eagle.cpu.windows import windows_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

SCALE = 0.3
HEADS = [(1, 1), (4, 4), (4, 2), (6, 1)]
pytestmark = pytest.mark.timeout(240)

seeds = st.integers(0, 2**32 - 1)
lengths = st.lists(st.integers(1, 20), min_size=1, max_size=4)


@dataclass
class Pool:
    """A KV pool in which no token lies where its position says, and garbage lies between."""

    keys: Tensor
    values: Tensor
    table: Tensor

    @classmethod
    def random(cls, kv_heads: int, seed: int, dtype: torch.dtype = torch.float32) -> Pool:
        torch.manual_seed(seed)
        table = torch.randperm(6 * 100).view(6, 100).int()
        keys, values = torch.randn(2, 600, kv_heads, 8).to(dtype)
        return cls(keys, values, table)


def one_query(query: Tensor, pool: Pool, slots: Sequence[int], cap: float) -> Tensor:
    """Attend with one query [heads, width] to the tokens in `slots`, head by head."""
    group = query.shape[0] // pool.keys.shape[1]
    rows = []
    for head in range(query.shape[0]):
        k = pool.keys[list(slots), head // group].double()
        v = pool.values[list(slots), head // group].double()
        scores = (k @ query[head].double()) * SCALE
        rows.append((cap * (scores / cap).tanh() if cap else scores).softmax(0) @ v)
    return torch.stack(rows)


def check(
    plan: list[Block], queries: Tensor, pool: Pool, seen: list[list[int]], cap: float = 0.0
) -> None:
    """Compare a plan's attention with `seen`, the slots that each query sees."""
    got = torch.full_like(queries, torch.nan)
    for block in plan:
        got[block.tokens] = attend(
            queries[block.tokens], pool.keys, pool.values, block, Scores(SCALE, cap=cap)
        )
    expected = torch.stack([one_query(q, pool, s, cap) for q, s in zip(queries, seen, strict=True)])
    close = 1e-5 if queries.dtype == torch.float32 else 3e-2
    torch.testing.assert_close(got.double(), expected, atol=close, rtol=close)


def slots(pool: Pool, request: int, positions: Sequence[int]) -> list[int]:
    return [int(pool.table[request, position]) for position in positions]


def some_requests(count: int) -> Tensor:
    return torch.randperm(6)[:count]


@pytest.mark.parametrize("heads", HEADS)
@given(lengths=lengths, seed=seeds)
@settings(max_examples=30, deadline=None)
def test_decode(heads: tuple[int, int], lengths: list[int], seed: int) -> None:
    pool, requests = Pool.random(heads[1], seed), some_requests(len(lengths))
    queries = torch.randn(len(lengths), heads[0], 8)
    seen = [slots(pool, int(r), range(n)) for r, n in zip(requests, lengths, strict=True)]
    plan = decode_plan(pool.table, requests, torch.tensor(lengths))
    assert len(plan) == 1
    check(plan, queries, pool, seen)


@pytest.mark.parametrize("heads", HEADS)
@given(
    parts=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 12)), min_size=1, max_size=4),
    equal=st.booleans(),
    seed=seeds,
)
@settings(max_examples=30, deadline=None)
def test_extend_after_any_prefix(
    heads: tuple[int, int], parts: list[tuple[int, int]], equal: bool, seed: int
) -> None:
    if equal:
        parts = [(prefix, parts[0][1]) for prefix, _ in parts]
    pool, requests = Pool.random(heads[1], seed), some_requests(len(parts))
    queries = torch.randn(sum(count for _, count in parts), heads[0], 8)
    seen = [
        slots(pool, int(request), range(prefix + i + 1))
        for request, (prefix, count) in zip(requests, parts, strict=True)
        for i in range(count)
    ]
    ends, counts = (torch.tensor(x) for x in ([p + c for p, c in parts], [c for _, c in parts]))
    plan = extend_plan(pool.table, requests, ends, counts)
    assert len(plan) == (1 if len({count for _, count in parts}) == 1 else len(parts))
    check(plan, queries, pool, seen)


@pytest.mark.parametrize("prefix", [0, 7])
@pytest.mark.parametrize("heads", HEADS)
def test_a_long_prompt_is_not_padded(heads: tuple[int, int], prefix: int) -> None:
    pool, count = Pool.random(heads[1], 0), MOST_PADDED_QUERIES + 9
    requests, ends = torch.tensor([4, 1]), torch.tensor([prefix + count] * 2)
    plan = extend_plan(pool.table, requests, ends, torch.tensor([count] * 2))
    assert len(plan) == 2
    seen = [slots(pool, r, range(prefix + i + 1)) for r in (4, 1) for i in range(count)]
    check(plan, torch.randn(2 * count, heads[0], 8), pool, seen)


def random_parents(nodes: int, count: int) -> list[list[int]]:
    return [[-1, *(int(torch.randint(0, i, ())) for i in range(1, nodes))] for _ in range(count)]


def path_to_root(parents: list[int], node: int) -> list[int]:
    return [] if node == -1 else [*path_to_root(parents, parents[node]), node]


@pytest.mark.parametrize("heads", HEADS)
@given(prefixes=lengths, nodes=st.integers(1, 9), seed=seeds)
@settings(max_examples=30, deadline=None)
def test_verify_sees_the_prefix_and_its_own_branch(
    heads: tuple[int, int], prefixes: list[int], nodes: int, seed: int
) -> None:
    pool, requests = Pool.random(heads[1], seed), some_requests(len(prefixes))
    parents = random_parents(nodes, len(prefixes))
    tree = ancestry_of(torch.tensor(parents), nodes)
    depths = torch.tensor([[len(path_to_root(p, i)) - 1 for i in range(nodes)] for p in parents])
    seen = [
        slots(pool, int(request), [*range(prefix), *(prefix + a for a in path_to_root(above, i))])
        for request, prefix, above in zip(requests, prefixes, parents, strict=True)
        for i in range(nodes)
    ]
    plan = verify_plan(pool.table, requests, torch.tensor(prefixes), tree, depths)
    check(plan, torch.randn(len(seen), heads[0], 8), pool, seen)


@pytest.mark.parametrize("heads", HEADS)
@given(prefixes=lengths, branches=st.integers(1, 4), steps=st.integers(1, 4), seed=seeds)
@settings(max_examples=30, deadline=None)
def test_a_draft_branch_sees_the_prefix_and_itself(
    heads: tuple[int, int], prefixes: list[int], branches: int, steps: int, seed: int
) -> None:
    pool, requests = Pool.random(heads[1], seed), some_requests(len(prefixes))
    for step in range(steps):
        seen = [
            slots(pool, int(request), [*range(prefix), *range(begin, begin + step + 1)])
            for request, prefix in zip(requests, prefixes, strict=True)
            for begin in range(prefix, prefix + branches * steps, steps)
        ]
        lengths = torch.tensor(prefixes)
        plan = draft_plan(pool.table, requests, lengths, branches, steps, step)
        check(plan, torch.randn(len(seen), heads[0], 8), pool, seen)


def test_bfloat16_and_a_pool_of_another_dtype() -> None:
    for pool_dtype in (torch.bfloat16, torch.float32):
        pool = Pool.random(2, 0, pool_dtype)
        requests, ends = torch.tensor([3, 0]), torch.tensor([5, 17])
        queries = torch.randn(2, 4, 8).bfloat16()
        seen = [slots(pool, 3, range(5)), slots(pool, 0, range(17))]
        check(decode_plan(pool.table, requests, ends), queries, pool, seen)


@pytest.mark.parametrize("window", [0, 3, 50])
def test_a_window_limits_how_far_back_a_query_sees(window: int) -> None:
    pool, requests = Pool.random(2, 0), torch.tensor([2, 5])
    plans = {
        "decode": decode_plan(pool.table, requests, torch.tensor([9, 4])),
        "whole prompt": extend_plan(
            pool.table, requests[:1], torch.tensor([80]), torch.tensor([80])
        ),
        "verify": verify_plan(
            pool.table,
            requests,
            torch.tensor([7, 2]),
            ancestry_of(torch.tensor([[-1, 0, 0, 1]] * 2), 4),
            torch.tensor([[0, 1, 1, 2]] * 2),
        ),
    }
    for name, (block,) in plans.items():
        distance = block.query_positions.unsqueeze(2) - block.key_positions.unsqueeze(1)
        unlimited, limited = block.mask(1, -1).squeeze(1), block.mask(1, window).squeeze(1)
        assert torch.equal(limited, unlimited & (distance <= window)), name
        assert bool(limited.any(2).all()), name


@pytest.mark.parametrize("count", [1, 5, MOST_PADDED_QUERIES + 6])
@pytest.mark.parametrize("heads", HEADS)
def test_scores_are_capped(heads: tuple[int, int], count: int) -> None:
    pool, requests = Pool.random(heads[1], 0), torch.tensor([3])
    queries = 3 * torch.randn(count, heads[0], 8)
    seen = [slots(pool, 3, range(7 + i + 1)) for i in range(count)]
    plan = extend_plan(pool.table, requests, torch.tensor([7 + count]), torch.tensor([count]))
    check(plan, queries, pool, seen, cap=1.5)


def test_a_cap_spares_the_window() -> None:
    pool, requests = Pool.random(2, 0), torch.tensor([2])
    (block,) = decode_plan(pool.table, requests, torch.tensor([9]))
    query = torch.randn(1, 4, 8)
    got = attend(query, pool.keys, pool.values, block, Scores(SCALE, window=3, cap=1.5))
    expected = one_query(query[0], pool, slots(pool, 2, range(5, 9)), 1.5)
    torch.testing.assert_close(got[0].double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "windows"),
    [
        (transformers.MistralConfig(num_hidden_layers=3, sliding_window=8), (7, 7, 7)),
        (transformers.MistralConfig(num_hidden_layers=2, sliding_window=None), (-1, -1)),
        (
            transformers.Qwen2Config(
                num_hidden_layers=3, use_sliding_window=True, sliding_window=8, max_window_layers=1
            ),
            (-1, 7, 7),
        ),
        (transformers.Qwen2Config(num_hidden_layers=2, sliding_window=8), (-1, -1)),
        # transformers knows no window of Llama, whatever its config.json says.
        (transformers.LlamaConfig(num_hidden_layers=2, sliding_window=8), ()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_layer_has_the_window_that_transformers_gives_it(
    config: Any, windows: tuple[int, ...]
) -> None:
    assert windows_of(SimpleNamespace(hf_text_config=config)) == windows


def test_elementwise_kernels() -> None:
    torch.manual_seed(0)
    states, shared, routed = torch.randn(3, 5, 8)
    gate, total = torch.randn(1, 8), routed.clone()
    add_gated(states, gate, shared, total)
    torch.testing.assert_close(total, routed + (states @ gate.T).sigmoid() * shared)
    logits, output = torch.randn(2, 4).bfloat16() * 9, torch.empty(2, 4)
    expected = 3 * (logits.float() / 3).tanh()
    assert softcap(logits, 3.0, output) is output
    torch.testing.assert_close(output, expected)
    assert softcap(logits, None, output) is output
    assert torch.equal(output, logits.float())
    in_place = logits.clone().float()
    assert softcap(in_place, 3.0) is in_place
    torch.testing.assert_close(in_place, expected)


def test_nothing_to_do_is_no_plan() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    table = torch.zeros(1, 4, dtype=torch.int32)
    assert decode_plan(table, none, none) == extend_plan(table, none, none, none) == []
