"""Trees built as SGLang drafts them, against trees kept as plain dictionaries."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import IntEnum

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pd_eagle.cpu.tree import NONE, build_tree, verify_greedy

pytestmark = pytest.mark.timeout(240)

seeds = st.integers(0, 2**32 - 1)
GARBAGE = -7


class Mode(IntEnum):
    """Stands for SGLang's TreeMaskMode, of which only the name matters here."""

    FULL_MASK = 0
    QLEN_ONLY = 1


@dataclass
class Draft:
    """All candidates of one draft: `above[c]` is the candidate above c, NONE for the root."""

    topk: int
    above: list[int] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    score: list[float] = field(default_factory=list)
    parent_list: list[int] = field(default_factory=list)

    @classmethod
    def grown(cls, topk: int, steps: int, rng: random.Random) -> Draft:
        """Grow as SGLang does: of every level's candidates, the best `topk` have children."""
        draft = cls(topk)
        draft._add(NONE, 1, 1.0, rng)
        draft.parent_list = [NONE, *range(topk)]
        beam = list(range(topk))
        for depth in range(2, steps + 1):
            begin = len(draft.above)
            for candidate in beam:
                draft._add(candidate, depth, draft.score[candidate], rng)
            level = range(begin, len(draft.above))
            beam = sorted(level, key=lambda c: -draft.score[c])[:topk]
            draft.parent_list += beam
        if steps == 1:
            draft.parent_list = []
        else:
            del draft.parent_list[-topk:]
        return draft

    def _add(self, above: int, depth: int, score: float, rng: random.Random) -> None:
        for _ in range(self.topk):
            self.above.append(above)
            self.depth.append(depth)
            self.score.append(score * rng.uniform(0.1, 0.9))

    def best(self, count: int) -> list[int]:
        return sorted(sorted(range(len(self.above)), key=lambda c: -self.score[c])[:count])


@dataclass
class Built:
    mask: list[list[list[int]]]
    positions: list[list[int]]
    index: list[list[int]]
    first: list[list[int]]
    following: list[list[int]]


def build(drafts: list[Draft], chosen: list[list[int]], lengths: list[int], steps: int) -> Built:
    requests, nodes = len(drafts), len(chosen[0]) + 1
    mask = torch.ones(requests * nodes * nodes + 5, dtype=torch.bool)
    positions = torch.full((requests * nodes,), GARBAGE)
    index, first, following = torch.full((3, requests, nodes), NONE)
    width = len(drafts[0].parent_list)
    build_tree(
        torch.tensor([d.parent_list for d in drafts]).view(requests, width),
        torch.tensor(chosen),
        torch.tensor(lengths),
        mask,
        positions,
        index,
        first,
        following,
        drafts[0].topk,
        steps,
        nodes,
        Mode.QLEN_ONLY,
    )
    assert bool(mask[-5:].all()), "wrote past its trees"
    return Built(
        mask[:-5].view(requests, nodes, nodes).int().tolist(),
        positions.view(requests, nodes).tolist(),
        index.tolist(),
        first.tolist(),
        following.tolist(),
    )


def chain(draft: Draft, chosen: list[int], node: int) -> list[int]:
    """The nodes from `node` up, without the root, until the root or a candidate not chosen."""
    nodes = []
    candidate = chosen[node - 1]
    while candidate != NONE and candidate in chosen:
        nodes.append(chosen.index(candidate) + 1)
        candidate = draft.above[candidate]
    return nodes


def children(draft: Draft, chosen: list[int], node: int) -> list[int]:
    """The chosen children of a node, lowest first."""
    candidate = NONE if node == 0 else chosen[node - 1]
    return [i + 1 for i, c in enumerate(chosen) if draft.above[c] == candidate]


def listed(built: Built, request: int, node: int) -> list[int]:
    """The children of a node as the links say."""
    found, child = [], built.first[request][node]
    while child != NONE:
        found.append(child)
        child = built.following[request][child]
    return found


def check(built: Built, drafts: list[Draft], chosen: list[list[int]], lengths: list[int]) -> None:
    nodes = len(chosen[0]) + 1
    for request, (draft, mine, length) in enumerate(zip(drafts, chosen, lengths, strict=True)):
        assert built.index[request] == [request * nodes + i for i in range(nodes)]
        for node in range(nodes):
            above = chain(draft, mine, node) if node else []
            expected = [int(i == 0 or i in above) for i in range(nodes)]
            assert built.mask[request][node] == expected
            assert built.positions[request][node] == length + len(above)
            assert listed(built, request, node) == children(draft, mine, node)


shapes = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4))


@given(shape=shapes, seed=seeds)
@settings(max_examples=500, deadline=None)
def test_the_best_candidates_make_a_tree(shape: tuple[int, int, int], seed: int) -> None:
    topk, steps, requests = shape
    rng = random.Random(seed)
    drafts = [Draft.grown(topk, steps, rng) for _ in range(requests)]
    count = rng.randint(1, len(drafts[0].above))
    chosen = [draft.best(count) for draft in drafts]
    lengths = [rng.randint(1, 99) for _ in drafts]
    built = build(drafts, chosen, lengths, steps)
    check(built, drafts, chosen, lengths)
    for request, (draft, mine) in enumerate(zip(drafts, chosen, strict=True)):
        depths = [draft.depth[c] for c in mine]
        assert built.positions[request][1:] == [lengths[request] + depth for depth in depths]


@given(shape=shapes, seed=seeds)
@settings(max_examples=300, deadline=None)
def test_a_node_whose_parent_was_not_chosen_is_in_nobodys_list(
    shape: tuple[int, int, int], seed: int
) -> None:
    topk, steps, requests = shape
    rng = random.Random(seed)
    drafts = [Draft.grown(topk, steps, rng) for _ in range(requests)]
    total = len(drafts[0].above)
    count = rng.randint(1, total)
    chosen = [sorted(rng.sample(range(total), count)) for _ in drafts]
    lengths = [rng.randint(1, 99) for _ in drafts]
    check(build(drafts, chosen, lengths, steps), drafts, chosen, lengths)


def test_other_mask_layouts_are_refused() -> None:
    none = torch.zeros(1, 0, dtype=torch.int64)
    with pytest.raises(NotImplementedError, match="FULL_MASK"):
        build_tree(none, none, none, none, none, none, none, none, 1, 1, 1, Mode.FULL_MASK)


def longest(draft: Draft, chosen: list[int], tokens: list[int], wanted: list[int]) -> list[int]:
    """The accepted path by definition: from the root, the child with the wanted token."""
    path = [0]
    while right := [c for c in children(draft, chosen, path[-1]) if tokens[c] == wanted[path[-1]]]:
        path.append(right[0])
    return path


@given(shape=shapes, seed=seeds)
@settings(max_examples=1000, deadline=None)
def test_greedy_verification(shape: tuple[int, int, int], seed: int) -> None:
    topk, steps, requests = shape
    rng = random.Random(seed)
    drafts = [Draft.grown(topk, steps, rng) for _ in range(requests)]
    count = rng.randint(1, len(drafts[0].above))
    chosen = [draft.best(count) for draft in drafts]
    built = build(drafts, chosen, [1] * requests, steps)
    nodes = count + 1
    # few tokens, so that matches are common
    tokens, wanted = ([[rng.randrange(4) for _ in range(nodes)] for _ in drafts] for _ in range(2))
    predicts = torch.full((requests * nodes,), GARBAGE, dtype=torch.int32)
    accepted = torch.full((requests, steps + 1), -1, dtype=torch.int32)
    counts = torch.full((requests,), GARBAGE, dtype=torch.int32)
    got = verify_greedy(
        predicts,
        accepted,
        counts,
        torch.tensor(tokens),
        torch.tensor(built.index),
        torch.tensor(built.first),
        torch.tensor(built.following),
        torch.tensor(wanted),
    )
    assert all(a is b for a, b in zip(got, (predicts, accepted, counts), strict=True))
    for request, (draft, mine) in enumerate(zip(drafts, chosen, strict=True)):
        path = longest(draft, mine, tokens[request], wanted[request])
        assert int(counts[request]) == len(path) - 1
        row = [request * nodes + node for node in path]
        assert accepted[request].tolist() == row + [-1] * (steps + 1 - len(path))
        assert predicts[row].tolist() == [wanted[request][node] for node in path]
    others = sorted(set(range(requests * nodes)) - set(accepted.flatten().tolist()))
    assert set(predicts[others].tolist()) <= {GARBAGE}
