"""Sampling through a draft tree gives the target's distribution, whatever was drafted."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pd_eagle.cpu.sampling import draw, top_k_renorm, top_p_renorm, verify_sampling
from tests.chi_squared import surprise

pytestmark = pytest.mark.timeout(240)

seeds = st.integers(0, 2**32 - 1)
VOCABULARY = 6


def random_tree(nodes: int, widest: int, rng: random.Random) -> list[list[int]]:
    """Children of every node."""
    children: list[list[int]] = [[] for _ in range(nodes)]
    for node in range(1, nodes):
        children[rng.choice([n for n in range(node) if len(children[n]) < widest])].append(node)
    return children


def links(children: list[list[int]]) -> tuple[list[int], list[int]]:
    first = [mine[0] if mine else -1 for mine in children]
    following = [-1] * len(children)
    for mine in children:
        for node, sibling in pairwise(mine):
            following[node] = sibling
    return first, following


def random_tokens(children: list[list[int]], rng: random.Random) -> list[int]:
    """Different tokens for siblings, as a draft's top-k gives them."""
    tokens = [0] * len(children)
    for mine in children:
        for node, token in zip(mine, rng.sample(range(VOCABULARY), len(mine)), strict=True):
            tokens[node] = token
    return tokens


def random_probs(nodes: int, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    probs = (torch.randn(nodes, VOCABULARY) * 2).softmax(-1)
    # top-k and top-p leave zeros
    return torch.nn.functional.normalize(probs * (torch.rand_like(probs) > 0.2) + 1e-9, p=1, dim=1)


def verify(
    children: list[list[int]],
    tokens: list[int],
    probs: torch.Tensor,
    coins: torch.Tensor,
    last_coins: torch.Tensor,
    depth: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Verify one tree once for every row of `coins`: predicted tokens, accepted nodes, counts."""
    copies, nodes = coins.shape
    first, following = links(children)
    predicts = torch.full((copies * nodes,), -1, dtype=torch.int32)
    accepted = torch.full((copies, depth + 1), -1, dtype=torch.int32)
    counts = torch.zeros(copies, dtype=torch.int32)
    verify_sampling(
        predicts=predicts,
        accept_index=accepted,
        accept_token_num=counts,
        candidates=torch.tensor([tokens] * copies),
        retrive_index=torch.arange(copies * nodes).view(copies, nodes),
        retrive_next_token=torch.tensor([first] * copies),
        retrive_next_sibling=torch.tensor([following] * copies),
        uniform_samples=coins,
        uniform_samples_for_final_sampling=last_coins,
        target_probs=probs.repeat(copies, 1, 1),
        draft_probs=torch.zeros(copies, nodes, VOCABULARY),
    )
    return predicts.view(copies, nodes), accepted, counts


def slowly(
    children: list[list[int]],
    tokens: list[int],
    probs: list[list[float]],
    coins: list[float],
    last_coin: float,
    depth: int,
) -> tuple[list[int], int]:
    """The accepted path and the token after it, by the definition."""
    node, path = 0, [0]
    while len(path) <= depth:
        point, taken = coins[node], None
        for child in children[node]:
            if point < probs[node][tokens[child]]:
                taken = child
                break
            point -= probs[node][tokens[child]]
        if taken is None:
            break
        node = taken
        path.append(node)
    left = list(probs[node])
    if len(path) <= depth:
        for child in children[node]:
            left[tokens[child]] = 0.0
    goal = last_coin * sum(left)
    for token, weight in enumerate(left):
        if goal < weight:
            return path, token
        goal -= weight
    raise AssertionError("no token left")


@given(nodes=st.integers(1, 12), widest=st.integers(1, 4), seed=seeds)
@settings(max_examples=400, deadline=None)
def test_the_walk_is_the_definition(nodes: int, widest: int, seed: int) -> None:
    rng = random.Random(seed)
    children = random_tree(nodes, widest, rng)
    tokens, probs = random_tokens(children, rng), random_probs(nodes, seed)
    coins, last_coins, depth = torch.rand(3, nodes), torch.rand(3), rng.randint(1, nodes)
    predicts, accepted, counts = verify(children, tokens, probs, coins, last_coins, depth)
    for i in range(3):
        path, last = slowly(
            children,
            tokens,
            probs.double().tolist(),
            coins[i].double().tolist(),
            float(last_coins[i]),
            depth,
        )
        assert int(counts[i]) == len(path) - 1
        assert accepted[i, : len(path)].tolist() == [i * nodes + node for node in path]
        assert accepted[i, len(path) :].tolist() == [-1] * (depth + 1 - len(path))
        assert predicts[i, path].tolist() == [*(tokens[node] for node in path[1:]), last]


@pytest.mark.parametrize("seed", range(4))
def test_tokens_have_the_targets_probability(seed: int) -> None:
    rng = random.Random(seed)
    children = [[1, 2, 3], [4, 5], [6], [], [], [], []]
    tokens, probs, copies = random_tokens(children, rng), random_probs(7, seed), 20_000
    coins, last_coins = torch.rand(copies, 7), torch.rand(copies)
    predicts, _, counts = verify(children, tokens, probs, coins, last_coins, depth=2)
    first = predicts[:, 0]
    assert surprise(first.bincount(minlength=VOCABULARY), probs[0] * copies) < 5
    # the second token, where a first child was taken: from the distribution at that child
    for child in children[0]:
        taken = predicts[(first == tokens[child]) & (counts > 0), child]
        if len(taken) > 200:
            counted = taken.bincount(minlength=VOCABULARY)
            assert surprise(counted, probs[child] * len(taken)) < 5
    assert float(counts.float().mean()) > 0.2


def test_a_lower_threshold_accepts_more() -> None:
    children, tokens = [[1], []], [0, 2]
    probs = torch.tensor([[0.1, 0.1, 0.6, 0.2, 0, 0]] * 2)
    one = {
        "candidates": torch.tensor([tokens]),
        "retrive_index": torch.arange(2).view(1, 2),
        "retrive_next_token": torch.tensor([links(children)[0]]),
        "retrive_next_sibling": torch.tensor([links(children)[1]]),
        "uniform_samples": torch.full((1, 2), 0.9),
        "uniform_samples_for_final_sampling": torch.zeros(1),
        "target_probs": probs.unsqueeze(0),
        "draft_probs": torch.zeros(1, 2, 6),
    }
    for thresholds, accepted in [((1.0, 1.0), 0), ((0.5, 1.0), 1), ((1.0, 0.6), 1)]:
        counts = torch.zeros(1, dtype=torch.int32)
        verify_sampling(
            torch.zeros(2, dtype=torch.int32),
            torch.zeros(1, 2, dtype=torch.int32),
            counts,
            threshold_single=thresholds[0],
            threshold_acc=thresholds[1],
            **one,
        )
        assert counts.tolist() == [accepted]


def test_draw_never_takes_what_has_no_weight() -> None:
    weights = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).repeat(4, 1)
    coins = torch.tensor([0.0, 0.4999, 0.5, 1 - 2**-24])
    assert draw(weights, coins).tolist() == [1, 1, 3, 3]


def test_top_k_keeps_the_first_of_equal_tokens() -> None:
    probs = torch.tensor([[0.1, 0.4, 0.4, 0.1]]).repeat(4, 1)
    kept = top_k_renorm(probs, torch.tensor([1, 2, 3, 1 << 30]))
    expected = [[0, 1, 0, 0], [0, 0.5, 0.5, 0], [1 / 9, 4 / 9, 4 / 9, 0], [0.1, 0.4, 0.4, 0.1]]
    torch.testing.assert_close(kept, torch.tensor(expected))


def test_top_p_keeps_what_comes_before_it_is_exceeded() -> None:
    probs = torch.tensor([[0.1, 0.5, 0.3, 0.1]]).repeat(4, 1)
    kept = top_p_renorm(probs, torch.tensor([0.01, 0.5001, 0.95, 1.0]))
    expected = [[0, 1, 0, 0], [0, 5 / 8, 3 / 8, 0], [0.1, 0.5, 0.3, 0.1], [0.1, 0.5, 0.3, 0.1]]
    torch.testing.assert_close(kept, torch.tensor(expected))
    kept = top_p_renorm(torch.tensor([[0.25, 0.5, 0.25]]), torch.tensor([0.5]))
    torch.testing.assert_close(kept, torch.tensor([[1 / 3, 2 / 3, 0]]))


@given(seed=seeds, rows=st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_top_k_and_top_p_sum_to_one_and_keep_the_order(seed: int, rows: int) -> None:
    probs = random_probs(rows, seed)
    for kept in (
        top_k_renorm(probs, torch.randint(1, VOCABULARY + 2, (rows,))),
        top_p_renorm(probs, torch.rand(rows)),
    ):
        torch.testing.assert_close(kept.sum(1), torch.ones(rows))
        ratio = kept / probs
        for row in range(rows):
            left = kept[row] > 0
            torch.testing.assert_close(ratio[row][left], ratio[row][left][:1].expand(left.sum()))
            assert not bool((probs[row][~left] > probs[row][left].min()).any())
