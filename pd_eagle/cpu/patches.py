"""The list of what the CPU platform patches in SGLang 0.5.23, and why; does not know how a patch is
applied.

What SGLang offers a hook for is not here: the platform's methods and the attention registry.
"""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING, Any

from pd_eagle.cpu import CPU_ATTENTION_BACKEND, cache_locs, sampling, tree
from pd_eagle.cpu.attention import TorchAttention, TorchDraftSteps
from pd_eagle.cpu.elementwise import add_gated, softcap
from pd_eagle.cpu.socket_hardening import STORE
from pd_eagle.cpu.transfer import host_memory_overrides
from pd_eagle.overrides import Override

if TYPE_CHECKING:
    from collections.abc import Callable

KERNELS = "sglang.kernels.ops"
SPECULATIVE = f"{KERNELS}.speculative"
NO_KERNEL = "None outside CUDA, and called for any temperature above 0"
TRITON = "a Triton kernel: needs a GPU"


def all_overrides() -> list[Override]:
    """Return every override that this machine needs."""
    return [*host_memory_overrides(), STORE, *PROCESS, *MODELS, *EAGLE]


def _instead(replacement: Any) -> Callable[[Any], Any]:
    return lambda original: replacement


def _with_our_backend(create: Callable[..., Any]) -> Callable[..., Any]:
    """Add our attention to the ones that a draft may use."""

    def _create_backend(
        self: Any,
        backend_name: str,
        backend_map: dict[str, Any],
        error_template: str,
        stamps_children: bool = False,
    ) -> Any:
        # True only for the backend of the draft's own steps.
        ours = _draft_steps if stamps_children else _draft_extend
        known = backend_map | {CPU_ATTENTION_BACKEND: lambda: (CPU_ATTENTION_BACKEND, ours(self))}
        return create(self, backend_name, known, error_template, stamps_children)

    return _create_backend


def _draft_steps(factory: Any) -> TorchDraftSteps:
    return TorchDraftSteps(factory.draft_model_runner, factory.topk, factory.speculative_num_steps)


def _draft_extend(factory: Any) -> TorchAttention:
    return TorchAttention(factory.draft_model_runner)


def _sampling_override(name: str, homes: tuple[str, ...], replacement: Any) -> list[Override]:
    return [Override(f"{home}:{name}", "None", NO_KERNEL, _instead(replacement)) for home in homes]


BOOTSTRAP = "sglang.srt.distributed.bootstrap"
ALLOCATION = "sglang.srt.mem_cache.allocation"
EAGLE_UTILS = "sglang.srt.speculative.eagle_utils"
RENORM = f"{KERNELS}.sampling.renorm"

PROCESS = [
    Override(
        target=f"{BOOTSTRAP}:_bind_threads_if_cpu",
        shape="device",
        because="allows one rank per NUMA node, and binds every engine's first rank to the first",
        new=_instead(lambda *, device: None),
    ),
    Override(
        target=f"{BOOTSTRAP}:_init_cpu_threads_env",
        shape="local_omp_cpuid, dist_init_method",
        because="on Arm it calls an operator that only a CPU build of sgl_kernel has",
        new=_instead(lambda *, local_omp_cpuid, dist_init_method=None: None),
    ),
    Override(
        target="sglang.srt.utils.common:is_shm_available",
        shape="dtype, world_size, local_size",
        because="on Arm it sends all-reduce to an operator that only that build has",
        new=_instead(lambda dtype, world_size, local_size: False),
    ),
]

MODELS = [
    Override(
        target=f"{KERNELS}.elementwise.elementwise:fused_gate_sigmoid_mul_add",
        shape="hidden_states, gate_weight, shared_output, final_hidden_states",
        because=f"{TRITON}; Qwen2-MoE calls it for its shared expert",
        new=_instead(add_gated),
    ),
    Override(
        target=f"{KERNELS}.activation.softcap:_softcap_logits",
        shape="full_logits, final_logit_softcapping, output",
        because=f"{TRITON}; Gemma 2 caps its logits",
        new=_instead(softcap),
    ),
]

EAGLE = [
    Override(
        target="sglang.srt.speculative.draft_utils:DraftBackendFactory._create_backend",
        shape="self, backend_name, backend_map, error_template, stamps_children",
        because="its list of backends that can draft is closed",
        new=_with_our_backend,
    ),
    Override(
        target=f"{SPECULATIVE}.spec_tree:build_tree_kernel_efficient_func",
        shape="parent_list, top_scores_index, seq_lens, tree_mask, positions, retrieve_index, "
        "retrieve_next_token, retrieve_next_sibling, topk, spec_steps, num_verify_tokens, "
        "tree_mask_mode",
        because="refuses platforms from outside the tree: no hook yet",
        new=_instead(tree.build_tree),
    ),
    Override(
        target=f"{SPECULATIVE}.spec_tree:verify_tree_greedy_func",
        shape="predicts, accept_index, accept_token_num, candidates, retrieve_index, "
        "retrieve_next_token, retrieve_next_sibling, target_predict, topk",
        because="refuses platforms from outside the tree: no hook yet",
        new=_instead(tree.verify_greedy),
    ),
    Override(
        target=f"{SPECULATIVE}.cache_locs:assign_draft_cache_locs_contiguous_func",
        shape="req_pool_indices, req_to_token, seq_lens, out_cache_loc, topk, num_cols, "
        "positions, mrope",
        because=TRITON,
        new=_instead(cache_locs.draft_cache_locs),
    ),
    Override(
        target=f"{SPECULATIVE}.cache_locs:fill_front_out_cache_loc_func",
        shape="num_front, out_cache_loc, front_out_cache_loc",
        because=TRITON,
        new=_instead(cache_locs.front_cache_locs),
    ),
    Override(
        target=f"{SPECULATIVE}.eagle:fill_accept_out_cache_loc_func",
        shape="accept_index, out_cache_loc, accept_out_cache_loc, size",
        because=TRITON,
        new=_instead(cache_locs.accepted_cache_locs),
    ),
    Override(
        target=f"{SPECULATIVE}.eagle:fill_bonus_tokens_func",
        shape="accept_tokens, accept_lens, bonus_tokens, accept_stride, batch_size",
        because=TRITON,
        new=_instead(cache_locs.bonus_tokens),
    ),
    Override(
        target=f"{ALLOCATION}:assign_req_to_token_pool_func",
        shape="req_pool_indices, req_to_token, start_offset, end_offset, out_cache_loc, batch_size",
        because=f"{TRITON}, and ignores that the platform has none",
        new=_instead(cache_locs.assign_req_to_token_pool),
    ),
    Override(
        target=f"{ALLOCATION}:get_last_loc",
        shape="req_to_token, req_pool_indices_tensor, prefix_lens_tensor",
        because="pages larger than 1: takes SGLang's own torch version by the name of its backend",
        new=lambda _: pkgutil.resolve_name(f"{ALLOCATION}:get_last_loc_torch"),
    ),
    *_sampling_override(
        "tree_speculative_sampling_target_only",
        (EAGLE_UTILS, f"{SPECULATIVE}.verify_sampling"),
        sampling.verify_sampling,
    ),
    *_sampling_override("top_k_renorm_prob", (EAGLE_UTILS, RENORM), sampling.top_k_renorm),
    *_sampling_override("top_p_renorm_prob", (EAGLE_UTILS, RENORM), sampling.top_p_renorm),
]
