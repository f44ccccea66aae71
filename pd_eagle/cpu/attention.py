"""SGLang's attention on any CPU with torch alone: prefill, decode, EAGLE drafting and tree
verification; does not know where slots come from or which tokens are accepted.

It is SGLang's `torch_native` done in one call of SDPA per batch instead of one per request.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.attention.verify_mask import VerifyMask
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.srt.runtime_context import get_spec
from sglang.srt.speculative.eagle_utils import TreeMaskMode
from torch import Tensor

from pd_eagle.cpu.attention_plan import Block, decode_plan, draft_plan, extend_plan, verify_plan
from pd_eagle.cpu.padded_sdpa import Scores, attend
from pd_eagle.cpu.windows import windows_of


class TorchAttention(AttentionBackend):  # type: ignore[misc]  # SGLang is untyped
    """One per model runner, and one per draft step."""

    def __init__(self, runner: Any) -> None:
        super().__init__()
        self._table: Tensor = runner.req_to_token_pool.req_to_token
        self._pool = runner.token_to_kv_pool
        self._plan: list[Block] = []
        # SGLang reads these by name: `model_executor/forward_context.py`, and the tree builder.
        self.req_to_token_pool = runner.req_to_token_pool
        self.token_to_kv_pool = self._pool
        self.max_context_len = runner.model_config.context_len
        self.kv_index_translator = runner.kv_index_translator
        self._verify_mask = _verify_mask(runner)
        # A draft model is Llama, also where the target is not.
        self._windows: tuple[int, ...] = (
            () if runner.is_draft_worker else windows_of(runner.model_config)
        )
        if isinstance(self._pool, SWAKVPool):
            raise NotImplementedError(
                "the CPU platform keeps one KV pool: set disable_hybrid_swa_memory"
            )

    @property
    def verify_mask(self) -> VerifyMask | None:
        """Where the tree builder writes each node's ancestors, nodes by nodes."""
        return self._verify_mask

    def support_triton(self) -> bool:
        """Return False: there is no Triton on a CPU."""
        return False

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Plan the forward pass that comes next."""
        mode, batch = forward_batch.forward_mode, forward_batch
        where = (self._table, batch.req_pool_indices, batch.seq_lens)
        if mode.is_idle():
            self._plan = []
        elif mode.is_decode():
            self._plan = decode_plan(*where)
        elif mode.is_target_verify():
            self._plan = verify_plan(*where, *_tree(batch))
        else:
            self._plan = extend_plan(*where, batch.extend_seq_lens)

    def plan_draft(self, forward_batch: Any, branches: int, steps: int, step: int) -> None:
        """Plan one step of a draft; SGLang's lengths are those before the draft."""
        self._plan = draft_plan(
            self._table,
            forward_batch.req_pool_indices,
            forward_batch.seq_lens,
            branches,
            steps,
            step,
        )

    def forward_extend(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        **more: Any,
    ) -> Tensor:
        """Write the new keys and values, then attend; [tokens, heads * width] in and out."""
        _refuse_unsupported(layer, more)
        if save_kv_cache and k is not None:
            location = KVWriteLoc(forward_batch.out_cache_loc, None)
            self._pool.set_kv_buffer(layer, location, k, v)
        queries = q.view(-1, layer.tp_q_head_num, layer.qk_head_dim)
        # Rows of no block (padding) must not carry NaN into the next layer.
        output = q.new_zeros(len(queries), layer.tp_q_head_num, layer.v_head_dim)
        keys = self._pool.get_key_buffer(layer.layer_id)
        values = self._pool.get_value_buffer(layer.layer_id)
        for block in self._plan:
            output[block.tokens] = attend(
                queries[block.tokens],
                keys,
                values,
                block,
                Scores(layer.scaling, self._window(layer), layer.logit_cap),
            )
        return output.flatten(1)

    # A decode is an extension by one token.
    forward_decode = forward_extend

    def _window(self, layer: Any) -> int:
        """Return the layer's window: from the model's config, else from SGLang."""
        if layer.layer_id < len(self._windows):
            return self._windows[int(layer.layer_id)]
        return int(layer.sliding_window_size)


class TorchDraftSteps:
    """The attention of all steps of one draft, in the shape SGLang expects of it."""

    needs_cpu_seq_lens = True

    def __init__(self, runner: Any, branches: int, steps: int) -> None:
        self._branches, self._steps = branches, steps
        # The last step only samples.
        self.attn_backends = [TorchAttention(runner) for _ in range(steps - 1)]

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Plan every step of the draft that comes next."""
        for step, backend in enumerate(self.attn_backends):
            backend.plan_draft(forward_batch, self._branches, self._steps, step)


def _tree(forward_batch: Any) -> tuple[Tensor, Tensor]:
    spec, prefixes = forward_batch.spec_info, forward_batch.seq_lens
    nodes = spec.draft_token_num
    tree = spec.custom_mask[: len(prefixes) * nodes * nodes].view(-1, nodes, nodes)
    return tree, spec.positions.view(-1, nodes) - prefixes.unsqueeze(1)


def _verify_mask(runner: Any) -> VerifyMask | None:
    nodes = get_spec().speculative_num_draft_tokens
    if not nodes or runner.is_draft_worker:
        return None
    most = runner.req_to_token_pool.size
    buffer = torch.zeros(most * nodes * nodes, dtype=torch.bool)
    return VerifyMask(buffer=buffer, mode=TreeMaskMode.QLEN_ONLY, max_bs=most)


def _refuse_unsupported(layer: Any, more: dict[str, Any]) -> None:
    wanted = [name for name, value in more.items() if value is not None]
    if layer.is_cross_attention or layer.attn_type != AttentionType.DECODER:
        wanted.append("attention that is not causal")
    if wanted:
        raise NotImplementedError(f"not on the CPU platform: {', '.join(wanted)}")
