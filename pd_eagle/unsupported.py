"""The methods of `sglang.Engine` that `PDEngine` refuses, each with the reason.

It does not know what is offered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pd_eagle.errors import NotSupported

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

_NO_EMBEDDINGS = "the models served here generate text: they make no embeddings"
_WEIGHTS = (
    "prefill and decode engines would answer with different weights; start another PDEngine with "
    "the new model_path"
)
_MEMORY = "an engine keeps its memory while it serves; shutdown() frees it"
_LORA = "adapters are not loaded here; merge them into the model"
_SESSIONS = "a session lives in one engine, and several answer here; wanted messages=… each time"
_EXPERTS = "each engine would write a file of its own"
_RANKS = "it reaches into one engine's scheduler, and there are several; use sglang.Engine"

#: Method of `sglang.Engine` (0.5.23) → why it is refused.
UNSUPPORTED: dict[str, str] = {
    **dict.fromkeys(("encode", "async_encode", "rerank"), _NO_EMBEDDINGS),
    **dict.fromkeys(
        (
            *("init_weights_update_group", "destroy_weights_update_group"),
            *("begin_weight_update", "end_weight_update", "update_weights_from_distributed"),
            *("update_weights_from_tensor", "update_weights_from_disk", "update_weights_from_ipc"),
        ),
        _WEIGHTS,
    ),
    **dict.fromkeys(("release_memory_occupation", "resume_memory_occupation"), _MEMORY),
    **dict.fromkeys(
        (
            *("load_lora_adapter", "load_lora_adapter_from_tensors", "unload_lora_adapter"),
            *("async_load_lora_adapter", "async_unload_lora_adapter"),
        ),
        _LORA,
    ),
    **dict.fromkeys(("open_session", "close_session"), _SESSIONS),
    **dict.fromkeys(
        (
            *("start_expert_distribution_record", "stop_expert_distribution_record"),
            "dump_expert_distribution_record",
        ),
        _EXPERTS,
    ),
    **dict.fromkeys(
        (
            *("get_weights_by_name", "collective_rpc", "save_remote_model", "save_sharded_model"),
            "freeze_gc",
        ),
        _RANKS,
    ),
    "attach_tokenizer_worker": "one front tokenizes for all engines",
}


class Unsupported:
    """Has a method for each, which raises `NotSupported` when it is called."""


def _refusing(name: str, reason: str) -> Callable[..., NoReturn]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise NotSupported(f"{name}: {reason}")

    refuse.__name__ = name
    refuse.__doc__ = f"Raise `NotSupported`: {reason}."
    return refuse


for _name, _reason in UNSUPPORTED.items():
    setattr(Unsupported, _name, _refusing(_name, _reason))
