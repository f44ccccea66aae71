"""Questions to one worker: controls of its engine, and pings, with or without a caller."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

from pd_eagle.errors import EngineError, WorkerDied
from pd_eagle.messages import Control, ControlResult, Ping

if TYPE_CHECKING:
    from collections.abc import Callable

    from pd_eagle.messages import ControlName


class Questions:
    def __init__(self, send: Callable[[Ping | Control], None]) -> None:
        self._send = send
        self._seq = itertools.count()
        self._awaited: dict[int, asyncio.Future[Any]] = {}
        self._unawaited: int | None = None

    async def ping(self) -> None:
        """Send a ping and wait for its pong. Raises `WorkerDied` if it will not come."""
        await self._answer_to(Ping(next(self._seq)))

    async def control(self, name: ControlName, arguments: dict[str, Any]) -> Any:
        """Have the engine do `name`; return what it says.

        Raises `EngineError` if it fails, `WorkerDied` if the answer will not come.
        """
        result: ControlResult = await self._answer_to(Control(next(self._seq), name, arguments))
        if result.error is not None:
            raise EngineError(f"{name}: {result.error}")
        return result.value

    async def _answer_to(self, question: Ping | Control) -> Any:
        answer = self._awaited[question.seq] = asyncio.get_running_loop().create_future()
        self._send(question)
        try:
            return await answer
        finally:
            self._awaited.pop(question.seq, None)

    def ping_without_waiting(self) -> None:
        """Send a ping unless the pong of the last such ping is still due."""
        if self._unawaited is None:
            self._unawaited = next(self._seq)
            self._send(Ping(self._unawaited))

    def pong(self, seq: int) -> None:
        if seq == self._unawaited:
            self._unawaited = None
        self._resolve(seq, None)

    def answered(self, result: ControlResult) -> None:
        self._resolve(result.seq, result)

    def _resolve(self, seq: int, value: object) -> None:
        if (answer := self._awaited.get(seq)) and not answer.done():
            answer.set_result(value)

    def fail(self, why: str) -> None:
        """Raise `WorkerDied` in all callers that wait for an answer."""
        awaited, self._awaited = self._awaited, {}
        for answer in awaited.values():
            if not answer.done():
                answer.set_exception(WorkerDied(why))
