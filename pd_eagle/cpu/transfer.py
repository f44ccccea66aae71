"""Patches for KV transfer from host memory; does not know which engines transfer what."""

from __future__ import annotations

import functools
import importlib
import logging
from typing import TYPE_CHECKING, Any

from pd_eagle.cpu.socket_hardening import MOONCAKE_PREFILL, NIXL_DECODE, NIXL_PREFILL
from pd_eagle.overrides import Override

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)


def host_memory_overrides() -> list[Override]:
    """Return the overrides of the transfer backends that can be loaded here.

    An engine that is configured to use another one fails with that backend's own error.
    """
    mooncake = [MOONCAKE_INDICES, MOONCAKE_PREFILL]
    nixl = [NIXL_MEMORY, NIXL_PREFILL, NIXL_DECODE]
    return [*mooncake, *nixl] if _can_import("nixl._api") else mooncake


def _can_import(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError as error:
        logger.info("KV transfer without %s: %s", module, error)
        return False
    return True


# Sleep of NIXL's progress thread between two polls; every transfer may wait that long.
_PROGRESS_DELAY_US = 1000


def _poll_less_often() -> None:
    """Make NIXL's progress thread sleep: it busy-polls a core in every idle engine (nixl 1.5.1).

    `nixl_agent.__init__` sets `pthrDelay` to 0 with no way to say otherwise. Without the thread the
    first token over a new link hangs: nothing answers UCX's handshake.
    """
    bindings = importlib.import_module("nixl._api").nixlBind

    class PatientConfig(bindings.nixlAgentConfig):  # type: ignore[misc,name-defined]
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, _PROGRESS_DELAY_US if name == "pthrDelay" else value)

    bindings.nixlAgentConfig = PatientConfig


def _call_kv_host_memory(init: Callable[..., None]) -> Callable[..., None]:
    _poll_less_often()

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.nixl_mems["VRAM"] = self.nixl_mems["DRAM"]

    return __init__


MOONCAKE_INDICES = Override(
    target="sglang.srt.disaggregation.mooncake.conn:MooncakeKVSender.supports_host_tensor_indices",
    shape="True",
    because="disaggregation/prefill.py would hand it indices in pinned memory with a CUDA event",
    new=lambda _: False,
)

NIXL_MEMORY = Override(
    target="nixl._api:nixl_agent.__init__",
    shape="self, agent_name, nixl_conf, instantiate_all",
    because="disaggregation/nixl/conn.py calls all KV VRAM, which UCX refuses for host memory",
    new=_call_kv_host_memory,
)
