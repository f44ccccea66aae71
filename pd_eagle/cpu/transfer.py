"""What KV transfer needs when KV lies in host memory; does not know who transfers what."""

from __future__ import annotations

import functools
import importlib
import logging
from typing import TYPE_CHECKING, Any

from pd_eagle.cpu.overrides import Override

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)


def host_memory_overrides() -> list[Override]:
    """Return the overrides of the transfer backends that can be loaded here.

    An engine that is then told to use another one fails with that backend's own words.
    """
    return [MOONCAKE_INDICES, NIXL_MEMORY] if _can_import("nixl._api") else [MOONCAKE_INDICES]


def _can_import(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError as error:
        logger.info("KV transfer without %s: %s", module, error)
        return False
    return True


def _call_kv_host_memory(init: Callable[..., None]) -> Callable[..., None]:
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
