"""A grammar that admits none of the model's tokens ends its own request, and no engine.

SGLang 0.5.23 then samples from probabilities that are all NaN: `torch.multinomial` raises on a CPU
and ends the CUDA context on a GPU, with every other request of the engine. Where some token is
sampled instead, the grammar refuses it and SGLang aborts the request. It does not know grammars.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

from pd_eagle.overrides import Override, apply
from pd_eagle.workers import context_end

if TYPE_CHECKING:
    from collections.abc import Callable

_ENGINE = "PD_EAGLE_ENGINE"
#: What every process of an engine must have from its start, so that `install` acts there.
VARIABLES = {_ENGINE: "1"}

_REFUSED = "Grammar accept_token failed"
MESSAGE = (
    "the grammar (response_format, json_schema, regex, ebnf, structural_tag or a tool's schema) "
    "admits none of the model's tokens after what was generated"
)


def install() -> None:
    """Override SGLang in the processes of our engines; a general plugin of SGLang.

    Every SGLang process calls it once, after its imports and before it starts anything.
    """
    if os.environ.get(_ENGINE):
        apply([_MASK, *context_end.overrides()])


def is_one(message: str) -> bool:
    """Return whether SGLang aborted a request with `message` because its grammar had no token."""
    return message.startswith(_REFUSED)


def _with_a_token_left(apply_mask: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    def apply_mask_and_leave_one(self: Any, logits: Any) -> None:
        apply_mask(self, logits)
        # [requests, 1]; nothing is copied from the GPU, so nothing waits for it.
        has_none = logits.amax(-1, keepdim=True) == -math.inf
        logits.masked_fill_(has_none, 0.0)

    return apply_mask_and_leave_one


_MASK = Override(
    target="sglang.srt.constrained.base_grammar_backend:GrammarMask.apply",
    shape="self, logits",
    because="logits that are all -inf become NaN probabilities, which end the engine",
    new=_with_a_token_left,
)
