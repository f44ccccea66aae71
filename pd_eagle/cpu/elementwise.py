"""The elementwise Triton kernels that model families call, in torch; knows nothing of SGLang's
layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def add_gated(states: Tensor, gate: Tensor, shared: Tensor, routed: Tensor) -> None:
    """Add sigmoid(states . gate) * shared to `routed`, in place.

    `states`, `shared` and `routed` [tokens, hidden], `gate` [1, hidden] or [hidden]; calculated in
    float32, as SGLang's kernel does it.
    """
    weight = (states.float() @ gate.float().view(-1, 1)).sigmoid()
    routed.copy_(routed.float() + weight * shared.float())


def softcap(logits: Tensor, cap: float | None, output: Tensor | None = None) -> Tensor:
    """Return cap * tanh(logits / cap), written to `output` in float32, else in place.

    A `cap` of None only copies.
    """
    if output is None:
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)
    output.copy_(logits)
    return output if cap is None else output.div_(cap).tanh_().mul_(cap)
