"""Starts a plan's workers all at once, waits until every one is ready, stops them all.

One that cannot start ends the start of the whole plan at once. What to do about a worker that dies
later is its owner's to say. It knows nothing of requests.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pd_eagle.config import DEFAULT_BOOTSTRAP_PORT
from pd_eagle.errors import StartFailed
from pd_eagle.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pd_eagle.placement import Plan
    from pd_eagle.worker import Launch

logger = logging.getLogger(__name__)


class Supervisor:
    """Owns the workers of one plan."""

    def __init__(self, plan: Plan, on_death: Callable[[Worker, str], None]) -> None:
        self.workers = [Worker(worker, on_death) for worker in plan.workers]
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    async def start(self, launch: Callable[[str, Path], Launch]) -> None:
        """Start every worker; `launch(name, temp_dir)` says how.

        Raises `StartFailed` of the first that fails, after all others were ended.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="pd_eagle-")
        folder = Path(self._folder.name)
        starts = [
            asyncio.create_task(worker.start(launch(worker.name, folder / worker.name)))
            for worker in self.workers
        ]
        try:
            await asyncio.gather(*starts)
        except BaseException:
            await self.stop()
            await asyncio.gather(*starts, return_exceptions=True)
            raise

    async def stop(self) -> None:
        """Stop every worker, whatever its state."""
        await asyncio.gather(*(worker.stop() for worker in self.workers))
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def bootstrap_ports(asked: int | None, names: list[str]) -> Mapping[str, int]:
    """Return a port of its own for each prefill worker: `asked` (or 8998), then the next free.

    Raises `StartFailed` when `asked` is taken: SGLang would only log it, say ready, and hang.
    """
    if names and asked is not None and not _is_free(asked):
        raise StartFailed(
            f"DISAGG_BOOTSTRAP_PORT={asked}: wanted a free port, something listens on it"
        )
    free = (port for port in itertools.count(asked or DEFAULT_BOOTSTRAP_PORT) if _is_free(port))
    return {name: next(free) for name in names}


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except (OSError, OverflowError):
            return False
    return True
