"""Where a grammar masks every token, the logits stay finite."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from pd_eagle.workers import context_end, grammar_dead_ends

if TYPE_CHECKING:
    import pytest

NONE = -math.inf


def test_a_row_without_a_token_becomes_even_and_others_stay() -> None:
    def mask(self: Any, logits: torch.Tensor) -> None:
        logits[0] = torch.tensor([NONE, NONE, NONE])
        logits[1] = torch.tensor([NONE, 2.0, NONE])

    logits = torch.ones(3, 3)
    grammar_dead_ends._MASK.new(mask)(None, logits)
    assert logits.tolist() == [[0.0, 0.0, 0.0], [NONE, 2.0, NONE], [1.0, 1.0, 1.0]]


def test_nothing_is_overridden_in_other_peoples_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    applied: list[object] = []
    monkeypatch.setattr(grammar_dead_ends, "apply", applied.extend)
    for name in grammar_dead_ends.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    grammar_dead_ends.install()
    assert not applied
    for name, value in grammar_dead_ends.VARIABLES.items():
        monkeypatch.setenv(name, value)
    grammar_dead_ends.install()
    assert applied == [grammar_dead_ends._MASK, *context_end.overrides()]
