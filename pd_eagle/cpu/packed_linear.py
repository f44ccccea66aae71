"""Keeps the weights of bfloat16 linear layers in oneDNN's own layout, to which `F.linear` converts
them at every call; does not know the model, nor SGLang's classes.

The results are the same bit for bit. On a Xeon with AMX the linear layers of the embedded model
then take about two thirds of their time, for one token as for a hundred (torch 2.14).
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor


class PackedLinear:
    """The linear method of a layer whose weight is packed; holds the only copy of it.

    Has what SGLang asks of a linear method after the weights are loaded (0.5.23,
    `srt/layers/quantization/unquant.py`).
    """

    def __init__(self, weight: Tensor) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return x W^T + b; [..., inputs] in, [..., outputs] out."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, bias, "none", [], "")
        return result

    def apply_with_addend(
        self, layer: Any, x: Tensor, addend: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """Return what `apply` returns, plus `addend`."""
        return self.apply(layer, x, bias).add_(addend)

    def apply_into(
        self, layer: Any, x: Tensor, output: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """Write what `apply` returns into `output`."""
        return output.copy_(self.apply(layer, x, bias))


def pack(model: Any, plain: type) -> int:
    """Pack each bfloat16 layer of a loaded model whose `quant_method` is a `plain`; count them.

    Such layers' own weights are empty from then on: they can be neither read nor replaced.
    """
    if not can_pack():
        return 0
    layers = [module for module in model.modules() if _is_plain(module, plain)]
    for layer in layers:
        weight = layer.weight
        layer.quant_method = PackedLinear(weight)
        weight.data = weight.new_empty(0)
    return len(layers)


def can_pack() -> bool:
    """Return whether oneDNN computes in bfloat16 on this CPU."""
    # Not tested on Arm, where oneDNN calls another library.
    tried = platform.machine().lower() in ("x86_64", "amd64")
    available = tried and torch.backends.mkldnn.is_available()
    return available and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _is_plain(module: Any, plain: type) -> bool:
    # A subclass may compute in its own way.
    method = getattr(module, "quant_method", None)
    return type(method) is plain and module.weight.dtype == torch.bfloat16
