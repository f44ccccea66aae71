"""Memory of an engine: weights, KV, and whether they fit a GPU at a TP; KV between unequal TPs.

Pure arithmetic over shapes and bytes. It knows neither the number of GPUs nor roles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pd_eagle.plan.shapes import ModelShape

# SGLang reserves memory for activations and CUDA graphs by card and batch size: about a tenth of an
# 80 GB card (SGLang 0.5.23, srt/arg_groups/memory_hook.py). The rest is weights and KV.
DEFAULT_MEM_FRACTION = 0.85
# The least KV with which a worker is useful: 78,000 tokens of Qwen2.5-7B, 13,000 of a 70B model.
KV_RESERVE_BYTES = 4 * 2**30

_GIB = 2**30

# Bytes of KV of one engine on the CPU: 23,000 tokens of the embedded model.
_CPU_KV_BYTES = 512 * 2**20
# The smallest useful pool: one conversation.
_CPU_KV_TOKENS = 8192


def cpu_kv_tokens(shape: ModelShape, context_length: int | None) -> int:
    """Return how many tokens of KV an engine on the CPU is given."""
    longest = context_length or shape.max_positions or _CPU_KV_TOKENS
    return max(_CPU_KV_BYTES // shape.kv_bytes_per_token, min(longest, _CPU_KV_TOKENS))


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one engine puts on its GPUs: the target, its draft, and the share of memory it may use.

    A draft of unknown shape (`speculative`, but no `draft`) rules out unequal TPs too.
    """

    target: ModelShape
    draft: ModelShape | None = None
    speculative: bool = False
    mem_fraction: float = DEFAULT_MEM_FRACTION

    def why_not_split(self, tp: int) -> str | None:
        """Return why the target or the draft cannot be split by `tp`, or None."""
        reason = self.target.why_not_tp(tp)
        if reason:
            return reason
        reason = self.draft.why_not_tp(tp) if self.draft else None
        return f"the draft's {reason}" if reason else None

    def why_not_in(self, memory_bytes: int, tp: int) -> str | None:
        """Return why a GPU of `memory_bytes` cannot hold its part at `tp`, or None."""
        need, room = self.bytes_per_gpu(tp), round(memory_bytes * self.mem_fraction)
        if need <= room:
            return None
        return (
            f"{need / _GIB:.1f} GiB a GPU at TP {tp} (weights {self._weights(tp) / _GIB:.1f},"
            f" {KV_RESERVE_BYTES / _GIB:.0f} for KV) do not fit into {room / _GIB:.1f} GiB,"
            f" {self.mem_fraction:g} of {memory_bytes / _GIB:.1f}"
        )

    def bytes_per_gpu(self, tp: int) -> int:
        return self._weights(tp) + KV_RESERVE_BYTES

    def _weights(self, tp: int) -> int:
        return -(-(self.target.weight_bytes + self._draft_bytes()) // tp)

    def _draft_bytes(self) -> int:
        if self.draft is None:
            return 0
        if self.draft.name == self.target.name:  # its own MTP layer
            return self.target.weight_bytes // self.target.layers
        # With its embedding: SGLang allocates that before it shares the target's.
        return self.draft.weight_bytes

    def kv_tokens(self, memory_bytes: int, tp: int) -> int:
        """Return about how many tokens of KV one engine holds on GPUs of `memory_bytes` at `tp`."""
        room = round(memory_bytes * self.mem_fraction) - self._weights(tp)
        return max(0, round(room / self._kv_bytes_per_token(tp)))

    def _kv_bytes_per_token(self, tp: int) -> float:
        draft = self.draft if self.draft and self.draft.name != self.target.name else None
        return sum(
            shape.kv_bytes_per_token / (1 if shape.is_mla else min(tp, shape.kv_heads))
            for shape in (self.target, draft)
            if shape is not None
        )

    def why_not_hand_over(self, prefill_tp: int, decode_tp: int) -> str | None:
        """Return why KV made at `prefill_tp` cannot go on at `decode_tp`, or None.

        SGLang 0.5.23 slices KV heads between unequal TPs. With EAGLE, Mooncake fails where the
        draft's KV entries differ in size from the target's, and NIXL may mis-address them.
        """
        if prefill_tp == decode_tp:
            return None
        if self.speculative:
            return f"with EAGLE, KV cannot go from TP {prefill_tp} to TP {decode_tp}"
        if self.target.is_mla or prefill_tp % decode_tp == 0 or decode_tp % prefill_tp == 0:
            return None
        return (
            f"KV cannot go from TP {prefill_tp} to TP {decode_tp}:"
            " neither is a multiple of the other"
        )
