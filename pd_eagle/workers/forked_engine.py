"""SGLang's Engine with its own processes forked from the caller's, where that is safe.

It is given the class and imports nothing of SGLang.
"""

from __future__ import annotations

import functools
import logging
import multiprocessing
from typing import TYPE_CHECKING, Any

from pd_eagle.plan import cuda_answers
from pd_eagle.workers.fork_check import why_cuda_is_not_untouched

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)


def forking(engine_class: Any) -> Any:
    """Return `engine_class`, an `sglang.Engine`, that forks its scheduler and detokenizer.

    Its `spawned_because` says why they were spawned instead; None if they were forked.
    """

    class ForkingEngine(engine_class):  # type: ignore[misc]
        spawned_because: str | None = None

        @classmethod
        def _launch_scheduler_processes(
            cls, server_args: Any, port_args: Any, run_scheduler: Callable[..., Any], **more: Any
        ) -> Any:
            cls.spawned_because = why_cuda_is_not_untouched()
            if cls.spawned_because is None:
                # SGLang 0.5.23 forces "spawn" just before this override point
                # (srt/entrypoints/engine.py, _set_envs_and_config).
                multiprocessing.set_start_method("fork", force=True)
                run_scheduler = functools.partial(_with_cuda, run_scheduler)
            else:
                logger.warning("the scheduler is spawned: %s", cls.spawned_because)
            try:
                return super()._launch_scheduler_processes(
                    server_args, port_args, run_scheduler, **more
                )
            finally:
                cuda_answers.dismiss()

    return ForkingEngine


def _with_cuda(run_scheduler: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    cuda_answers.dismiss()
    return run_scheduler(*args, **kwargs)
