"""The last tokens of the context can be used, by prompts and by answers.

SGLang (0.5.23) refuses prompts within 6 tokens of the context's end and ends answers 2 tokens
before it, though its KV pool and its positions have room for them. It does not know requests.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from pd_eagle.overrides import Override

if TYPE_CHECKING:
    from collections.abc import Callable

#: Where these stand in what `get_worker_info` returns.
_MAX_LEN, _MAX_INPUT_LEN = 4, 5
_SCHEDULER = "sglang.srt.managers.scheduler"


def overrides() -> list[Override]:
    """Return what is to be overridden in this process: nothing where no scheduler can run."""
    return [_WORKER_INFO] if _SCHEDULER in sys.modules else []


def _to_the_end(get_worker_info: Callable[[Any], tuple[Any, ...]]) -> Callable[[Any], Any]:
    def worker_info(self: Any) -> tuple[Any, ...]:
        info = list(get_worker_info(self))
        context: int = self.model_config.context_len
        if info[_MAX_LEN] != context - 1:  # the KV pool is smaller, and is the limit
            return tuple(info)
        # Scheduler: a prompt is shorter than this one, an answer ends 1 before the other.
        info[_MAX_INPUT_LEN] = context
        if self.model_runner.spec_algorithm.is_none():  # drafts run ahead of the answer
            info[_MAX_LEN] = context + 1
        return tuple(info)

    return worker_info


_WORKER_INFO = Override(
    target="sglang.srt.managers.tp_worker:TpModelWorker.get_worker_info",
    shape="self",
    because="prompts and answers may use the whole context",
    new=_to_the_end,
)
