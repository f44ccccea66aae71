"""Packed weights calculate what the layer's own weight did, to the bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn import Linear, Module, ModuleList, Parameter
from torch.nn.functional import linear

from pd_eagle.cpu import packed_linear
from pd_eagle.cpu.packed_linear import PackedLinear, can_pack, pack

if TYPE_CHECKING:
    from torch import Tensor

SHAPES = [(960, 576), (576, 1536), (200, 64)]  # two of the embedded model's, and one that is odd
ROWS = [0, 1, 7, 64, 130]

packs = pytest.mark.skipif(not can_pack(), reason="oneDNN has no bfloat16 on this CPU")


class Plain:
    """A linear method that has not been packed."""


class Layer(Module):  # type: ignore[misc]  # torch is not followed
    """As SGLang's linear layers are: a weight, and a method that calculates with it."""

    def __init__(self, outputs: int, inputs: int, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.quant_method: Plain | PackedLinear = Plain()
        self.weight = Parameter(torch.randn(outputs, inputs).to(dtype), requires_grad=False)


@packs
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_packed_is_the_same_to_the_bit(outputs: int, inputs: int, with_bias: bool) -> None:
    layer = Layer(outputs, inputs)
    weight: Tensor = layer.weight.clone()
    bias = torch.randn(outputs).bfloat16() if with_bias else None
    assert pack(ModuleList([layer]), Plain) == 1
    assert layer.weight.numel() == 0, "held twice"
    method = layer.quant_method
    assert isinstance(method, PackedLinear)
    for rows in ROWS:
        x = torch.randn(rows, 2 * inputs).bfloat16()[:, :inputs]  # not contiguous
        expected = linear(x, weight, bias)
        assert torch.equal(method.apply(layer, x, bias), expected), f"{rows} rows"
        into = torch.empty(rows, outputs, dtype=torch.bfloat16)
        assert method.apply_into(layer, x, into, bias) is into
        assert torch.equal(into, expected)
        more = torch.ones_like(expected)
        assert torch.equal(method.apply_with_addend(layer, x, more, bias), expected + 1)


@packs
def test_only_plain_bfloat16_is_packed() -> None:
    class Other(Plain):
        pass

    other, exact = Layer(8, 8), Layer(8, 8, torch.float32)
    other.quant_method = Other()
    assert pack(ModuleList([other, exact, Linear(8, 8)]), Plain) == 0
    assert exact.weight.shape == other.weight.shape == (8, 8)


def test_a_cpu_that_cannot_keeps_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "can_pack", lambda: False)
    layer = Layer(8, 8)
    assert pack(ModuleList([layer]), Plain) == 0
    assert isinstance(layer.quant_method, Plain)
    assert layer.weight.shape == (8, 8)
