"""SGLang's platform class for any CPU, x86 or Arm; does not know how an engine is started."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch._dynamo
from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform

from pd_eagle import overrides
from pd_eagle.cpu import CPU_ATTENTION_BACKEND, priority, threads
from pd_eagle.cpu.packed_linear import pack
from pd_eagle.errors import StartFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

logger = logging.getLogger(__name__)

# What attention and tree operations here support. EAGLE3 is EAGLE with another draft.
SPECULATIVE_ALGORITHMS = ("EAGLE", "EAGLE3")


class CpuPlatform(CpuDeviceMixin, SRTPlatform):  # type: ignore[misc]  # SGLang is untyped
    """One instance per process, made by SGLang; a forked process inherits it and what it did.

    `CpuDeviceMixin` comes first: `SRTPlatform` inherits abstract versions of the same methods.
    """

    _enum = PlatformEnum.OOT
    _overridden = False

    def get_default_attention_backend(self) -> str:
        """Return the attention backend that engines use when none is named."""
        return CPU_ATTENTION_BACKEND

    def get_compile_backend(self, mode: str | None = None) -> str:
        """Return a `torch.compile` backend that needs no compiler."""
        return "eager"

    def supports_speculative_algorithm(self, algorithm: str) -> bool:
        """Return whether this platform can run the algorithm."""
        return algorithm in SPECULATIVE_ALGORITHMS

    def get_speculative_cache_locs_fn(self) -> Callable[..., Tensor]:
        """Return the torch version of `assign_extend_cache_locs`."""
        from pd_eagle.cpu.cache_locs import extend_cache_locs

        return extend_cache_locs

    def get_kv_pool_cls(self, *, kind: str) -> type | None:
        """Return the KV pool for host memory; None leaves the kind to SGLang."""
        from pd_eagle.cpu.kv_pool import HostKVPool

        return HostKVPool if kind == "mha" else None

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Refuse options that would fail in a GPU kernel at the first request."""
        if server_args.speculative_use_rejection_sampling:
            raise StartFailed(
                "speculative_use_rejection_sampling needs a GPU; without it the CPU platform "
                "samples from the target's exact distribution as well"
            )

    def init_backend(self) -> None:
        """Set what must be set before any engine code runs.

        SGLang calls it while `srt/model_executor/model_runner.py` is being imported, in every
        process: nothing that imports engine modules may be done here, and no thread started.
        """
        # `speculative/spec_utils.py` compiles functions, with no way to say otherwise: seconds at
        # their first use.
        torch._dynamo.config.disable = True
        register_attention()

    def apply_overrides(self) -> None:
        """Patch what SGLang offers no hook for, once in a process; a forked one inherits it."""
        if not self._overridden:
            from pd_eagle.cpu.patches import all_overrides

            overrides.apply(all_overrides())
            self._overridden = True

    def post_load_model(self, model: Any) -> None:
        """Pack weights, set threads and priority, and refuse to serve without the overrides.

        SGLang only logs when a general plugin fails.

        What this raises ends the scheduler, and the engine's start with it.
        """
        if not self._overridden:
            raise StartFailed(
                "the general plugin pd_eagle_cpu was not executed: see SGLang's log above, "
                "and SGLANG_PLUGINS, which can forbid it"
            )
        from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod

        logger.debug("%d linear layers packed", pack(model, UnquantizedLinearMethod))
        torch.set_num_threads(threads())
        priority.lower()


def register_attention() -> None:
    """Put our attention into SGLang's registry; its module is imported on first use."""
    from sglang.srt.layers.attention.attention_registry import register_attention_backend

    def create(runner: Any) -> Any:
        from pd_eagle.cpu.attention import TorchAttention

        return TorchAttention(runner)

    register_attention_backend(CPU_ATTENTION_BACKEND)(create)
