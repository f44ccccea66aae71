"""Whether drafts pay: the model against what was measured, and the alarm where they do not."""

from __future__ import annotations

import pytest

from pd_eagle.plan import measured
from pd_eagle.plan.speculation import alarm, cost_ratio, speedup
from pd_eagle.plan.tuning import Tree

TREE = Tree(*measured.TREE, "documented")
CHAIN = Tree(*measured.CHAIN, "measured")


@pytest.mark.parametrize("row", measured.SPECULATION, ids=lambda row: f"{row.at_once} at once")
def test_the_model_gives_back_what_was_measured(row: measured.Speculation) -> None:
    for tree, tokens_per_s in ((TREE, row.tree), (CHAIN, row.chain)):
        found = speedup(tree, "cuda", row.at_once, measured.TOKENS_A_VERIFICATION)
        assert found == pytest.approx(tokens_per_s / row.off)


def test_what_lies_between_and_outside_of_the_measured() -> None:
    low, high = cost_ratio(CHAIN, 16), cost_ratio(CHAIN, 64)
    assert cost_ratio(CHAIN, 40) == pytest.approx((low + high) / 2)
    assert cost_ratio(CHAIN, 500) == high
    assert cost_ratio(CHAIN, 0.5) == cost_ratio(CHAIN, 1)


def test_a_longer_chain_costs_more_by_its_tokens() -> None:
    twice = Tree(7, 1, 8, "by hand")
    assert cost_ratio(twice, 16) - 1 == pytest.approx(2 * (cost_ratio(CHAIN, 16) - 1))


def test_nothing_is_said_where_nothing_is_known() -> None:
    assert speedup(None, "cuda", 1, 2.0) is None
    assert speedup(CHAIN, "cuda", 1, None) is None
    assert speedup(CHAIN, "cpu", 1, 2.0) is None


@pytest.mark.parametrize(
    ("tree", "at_once", "length", "slower"),
    [
        (TREE, 64, 2.5, True),  # 23 % slower than off, as measured
        (CHAIN, 64, 2.5, False),
        (CHAIN, 64, 1.2, True),  # a poor draft
        (CHAIN, 1, 1.2, True),
        (TREE, 1, 2.0, False),
    ],
)
def test_drafts_that_do_not_pay(tree: Tree, at_once: int, length: float, slower: bool) -> None:
    found = speedup(tree, "cuda", at_once, length)
    assert found is not None
    assert (found < 1) is slower


def test_the_alarm_names_what_to_set() -> None:
    told = alarm("decode-0", TREE, 64, 2.5)
    assert told.startswith("EAGLE makes decode-0 slower: 2.50 tokens a verification, which costs")
    assert "SPECULATIVE_NUM_STEPS=3 SPECULATIVE_EAGLE_TOPK=1 SPECULATIVE_NUM_DRAFT_TOKENS=4" in told
    assert "try SPECULATIVE_NUM_STEPS=2 SPECULATIVE_EAGLE_TOPK=1" in alarm("d", CHAIN, 64, 1.1)
    assert alarm("d", Tree(1, 1, 2, ""), 64, 1.1).endswith("try unset SPECULATIVE_ALGORITHM")
