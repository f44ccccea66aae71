"""Forks workers from a zygote as long as that works; decides when they are spawned instead."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING

from pd_eagle.workers.zygote import ForkRefused, ZygoteLauncher

if TYPE_CHECKING:
    from collections.abc import Callable

    from pd_eagle.workers.launch import SpawnLauncher, WorkerProcess
    from pd_eagle.workers.zygote import ZygoteProcess

logger = logging.getLogger(__name__)

# What CUDA and torch say in a child whose parent had initialised CUDA.
_FORK_FAULT = re.compile(
    r"in forked subprocess|CUDA driver initialization failed|CUDA error: initialization error"
    r"|cudaErrorInitializationError|CUDA_ERROR_NOT_INITIALIZED"
)


class ForkLauncher:
    """Asks a zygote for workers; replaces it when it has died, and spawns where it may not fork.

    `start_zygote` starts the replacement. Workers of a dead zygote live on. Raises `StartFailed`
    as `ZygoteLauncher` does.
    """

    def __init__(
        self,
        first: ZygoteLauncher,
        start_zygote: Callable[[], ZygoteProcess],
        spawning: SpawnLauncher,
        imports_timeout_s: float | None = None,
    ) -> None:
        self._zygotes = [first]
        self._imports_timeout_s = imports_timeout_s
        self._start_zygote = start_zygote
        self._spawning = spawning
        self._forks_fail = False
        self._replacing = asyncio.Lock()

    async def launch(self) -> WorkerProcess:
        if self._forks_fail:
            return await self._spawning.launch()
        try:
            async with self._replacing:
                if self._zygotes[-1].gone:
                    await self._replace()
            return await self._zygotes[-1].launch()
        except ForkRefused as refusal:
            logger.warning("a worker is spawned, not forked: %s", refusal.message)
            self._spawning.because = refusal.message
            return await self._spawning.launch()

    def stop_forking(self, failure: str) -> bool:
        if self._forks_fail or not _FORK_FAULT.search(failure):
            return False
        self._forks_fail = True
        self._spawning.because = f"a forked engine failed: {failure.splitlines()[0]}"
        logger.warning("workers are spawned from now on: %s", self._spawning.because)
        return True

    async def _replace(self) -> None:
        logger.warning("the zygote died: a new one is made")
        starting = asyncio.create_task(asyncio.to_thread(self._start_zygote))
        try:
            zygote = ZygoteLauncher(await asyncio.shield(starting), self._imports_timeout_s)
        except asyncio.CancelledError:
            (await starting).discard()
            raise
        self._zygotes.append(zygote)  # `close` may come before it is ready
        reason = await zygote.ready()
        if reason:
            raise ForkRefused(f"the new zygote may not fork: {reason}")

    async def close(self) -> None:
        for zygote in self._zygotes:
            await zygote.close()
        await self._spawning.close()
