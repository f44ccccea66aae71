"""SGLang's platform class for any CPU, x86 or Arm; does not know how an engine is started."""

from __future__ import annotations

from typing import Any

import torch._dynamo
from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform

from pd_eagle.cpu import CPU_ATTENTION_BACKEND, overrides
from pd_eagle.cpu.transfer import host_memory_overrides


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

    def init_backend(self) -> None:
        """Set what must be set before any engine code runs.

        SGLang calls it while `srt/model_executor/model_runner.py` is being imported, in every
        process: nothing that imports engine modules may be done here, and no thread started.
        """
        # `speculative/spec_utils.py` compiles functions with no seam: seconds at first use.
        torch._dynamo.config.disable = True

    def post_load_model(self, model: Any) -> None:
        """Apply the overrides; the first call of SGLang's scheduler after all its imports.

        The scheduler dies of whatever this raises, and the engine's start with it.
        """
        if not self._overridden:
            overrides.apply(host_memory_overrides())
            self._overridden = True
