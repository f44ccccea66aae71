"""Slots computed for a batch are those that a loop over its requests computes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pd_eagle.cpu.cache_locs import (
    accepted_cache_locs,
    assign_req_to_token_pool,
    bonus_tokens,
    draft_cache_locs,
    extend_cache_locs,
    front_cache_locs,
)

pytestmark = pytest.mark.timeout(240)

REQUESTS, POSITIONS = 5, 40
spans = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 8)), min_size=1, max_size=REQUESTS)


@dataclass
class Case:
    table: torch.Tensor
    requests: torch.Tensor
    starts: torch.Tensor
    ends: torch.Tensor


def case(spans: list[tuple[int, int]]) -> Case:
    return Case(
        torch.randperm(REQUESTS * POSITIONS).view(REQUESTS, POSITIONS).int(),
        torch.randperm(REQUESTS)[: len(spans)],
        torch.tensor([start for start, _ in spans]),
        torch.tensor([start + count for start, count in spans]).int(),
    )


def walked(c: Case) -> list[int]:
    rows = zip(c.requests.tolist(), c.starts.tolist(), c.ends.tolist(), strict=True)
    return [int(c.table[r, position]) for r, start, end in rows for position in range(start, end)]


@given(spans=spans)
@settings(max_examples=100, deadline=None)
def test_extend(spans: list[tuple[int, int]]) -> None:
    c = case(spans)
    got = extend_cache_locs(c.requests, c.table, c.starts, c.ends, len(spans), 8, "cpu")
    assert got.dtype == torch.int64
    assert got.shape == (8 * len(spans),)
    assert got[: len(walked(c))].tolist() == walked(c)


@given(spans=spans)
@settings(max_examples=200, deadline=None)
def test_assign_writes_what_extend_reads_and_nothing_else(spans: list[tuple[int, int]]) -> None:
    c = case(spans)
    before, total = c.table.clone(), len(walked(c))
    assign_req_to_token_pool(
        c.requests, c.table, c.starts, c.ends, torch.arange(1000, 1000 + total), len(spans)
    )
    assert walked(c) == list(range(1000, 1000 + total))
    assert int((c.table != before).sum()) == total


@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=REQUESTS),
    topk=st.integers(1, 4),
    steps=st.integers(1, 4),
)
@settings(max_examples=200, deadline=None)
def test_draft(lengths: list[int], topk: int, steps: int) -> None:
    c = case([(length, topk * steps) for length in lengths])
    got = torch.empty(len(lengths) * topk * steps, dtype=torch.int64)
    draft_cache_locs(c.requests, c.table, c.starts, got, topk, steps)
    assert got.tolist() == walked(c)


def test_draft_refuses_what_is_asked_on_cuda_only() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(NotImplementedError):
        draft_cache_locs(none, none.view(0, 1), none, none, 1, 1, positions=none)


@given(fronts=st.lists(st.integers(0, 6), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_front(fronts: list[int]) -> None:
    window = torch.randperm(len(fronts) * 6)
    got = torch.full((len(fronts) * 6,), -1)
    front_cache_locs(torch.tensor(fronts), window, got)
    expected = [s for i, n in enumerate(fronts) for s in window[i * 6 : i * 6 + n].tolist()]
    assert got.tolist() == expected + [-1] * (len(got) - len(expected))


@given(accepted=st.lists(st.lists(st.integers(-1, 5), min_size=3, max_size=3), min_size=1))
@settings(max_examples=200, deadline=None)
def test_accepted(accepted: list[list[int]]) -> None:
    slots, flat = torch.randperm(6) + 50, [i for row in accepted for i in row]
    got = torch.full((len(flat),), -1)
    accepted_cache_locs(torch.tensor(accepted).int(), slots, got, len(flat))
    expected = [int(slots[i]) for i in flat if i >= 0]
    assert got.tolist() == expected + [-1] * (len(flat) - len(expected))


def test_bonus_is_the_last_accepted_token() -> None:
    tokens, got = torch.tensor([[5, 6, 0], [7, 0, 0], [8, 9, 4]]).int(), torch.zeros(3).int()
    bonus_tokens(tokens.flatten(), torch.tensor([2, 1, 3]).int(), got, 3, 3)
    assert got.tolist() == [6, 7, 4]
