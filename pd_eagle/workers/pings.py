"""Pings to one worker: those that a caller awaits, and one that nobody does."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

from pd_eagle.errors import WorkerDied
from pd_eagle.messages import Ping

if TYPE_CHECKING:
    from collections.abc import Callable


class Pings:
    def __init__(self, send: Callable[[Ping], None]) -> None:
        self._send = send
        self._seq = itertools.count()
        self._awaited: dict[int, asyncio.Future[None]] = {}
        self._unawaited: int | None = None

    async def ping(self) -> None:
        """Send a ping and wait for its pong. Raises `WorkerDied` if it will not come."""
        seq = next(self._seq)
        pong = self._awaited[seq] = asyncio.get_running_loop().create_future()
        self._send(Ping(seq))
        try:
            await pong
        finally:
            self._awaited.pop(seq, None)

    def ping_without_waiting(self) -> None:
        """Send a ping unless the pong of the last such ping is still due."""
        if self._unawaited is None:
            self._unawaited = next(self._seq)
            self._send(Ping(self._unawaited))

    def pong(self, seq: int) -> None:
        if seq == self._unawaited:
            self._unawaited = None
        if (pong := self._awaited.get(seq)) and not pong.done():
            pong.set_result(None)

    def fail(self, why: str) -> None:
        """Raise `WorkerDied` in all callers that wait for a pong."""
        awaited, self._awaited = self._awaited, {}
        for pong in awaited.values():
            if not pong.done():
                pong.set_exception(WorkerDied(why))
