"""Finds the request that crashes engines, so that it is not tried again and costs nobody else.

A crash is an engine's own: an exception in its last words, a fatal signal, not a kill from outside.
The rule: what is in an engine that crashes is suspect and resumed once as after any death. What is
there at a second crash goes on one at a time, with a worker of the crashed role for itself, until
it has come past the point where it was at the crash. What crashes an engine alone is the culprit:
it ends with the engine's last words. Crashes that have a culprit do not count against the worker.

It knows requests by the rid of their current attempt and workers by name; it starts nothing.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

logger = logging.getLogger(__name__)

#: Crashes after which a request goes on alone.
_ALONE_FROM = 2
#: Crashes after which it stays alone to its end: it may crash engines only later on.
_ALONE_TO_ITS_END_FROM = 4
#: Tokens beyond where a request was at the crash that clear it.
_CLEARING_TOKENS = 2


@dataclass(eq=False, slots=True)
class Suspicion:
    """What is known of one request, over all its attempts. `tokens` is how far its answer is."""

    tokens: int = 0
    crashes: int = 0
    #: The last words of the engine that it crashed alone.
    convicted_by: str | None = None
    on_trial: bool = False
    crashed_worker: str = ""
    _cleared_at: int = 0
    _cases: list[_Crash] = field(default_factory=list)

    @property
    def must_be_alone(self) -> bool:
        return self.crashes >= _ALONE_FROM and not self.cleared

    @property
    def cleared(self) -> bool:
        """Whether it has come past where it was at its last crash."""
        if self.crashes >= _ALONE_TO_ITS_END_FROM:
            return False
        return self.tokens >= self._cleared_at

    def crashed(self, crash: _Crash) -> None:
        self.crashes += 1
        self.crashed_worker = crash.worker
        self._cleared_at = self.tokens + _CLEARING_TOKENS
        self._cases.append(crash)


@dataclass(eq=False, slots=True)
class _Crash:
    """One crash whose culprit is not known yet; `open` are the requests that may be it."""

    worker: str
    open: set[Suspicion]
    has_culprit: bool = False


class Quarantine:
    """Keeps the suspicion of every open request, and one worker apart for those on trial.

    `blame(worker)` is called for a crash that turned out to have no culprit; `on_change` when the
    reserved worker is another, or none.
    """

    def __init__(self, blame: Callable[[str], None], on_change: Callable[[], None]) -> None:
        self.reserved: str | None = None
        self._blame = blame
        self._on_change = on_change
        self._open: dict[str, Suspicion] = {}
        self._awaiting_trial: set[Suspicion] = set()
        self._trial = asyncio.Lock()

    def begin(self, rid: str, suspicion: Suspicion) -> None:
        """Note that an attempt begins; `end_attempt` must follow."""
        self._open[rid] = suspicion

    def end_attempt(self, rid: str, suspicion: Suspicion) -> None:
        self._open.pop(rid, None)
        self._end_trial(suspicion)

    def crashed(self, worker: str, rids: Iterable[str], words: str) -> bool:
        """Note that `worker` crashed with `rids` in it; return whether that counts against it.

        False while one of them may be the culprit; `blame` tells later if none was.
        """
        rids = list(rids)
        suspects = {self._open[rid] for rid in rids if rid in self._open}
        if not suspects:
            return True
        crash = _Crash(worker, suspects)
        for suspicion in suspects:
            suspicion.crashed(crash)
        if len(rids) == 1:
            self._judge_lone(next(iter(suspects)), worker, words)
        if alone := {one for one in suspects if one.must_be_alone and not one.convicted_by}:
            self._awaiting_trial |= alone
            self._reserve(worker)
            logger.warning("%d requests go on one at a time, on %s", len(alone), self.reserved)
        return False

    def _judge_lone(self, suspicion: Suspicion, worker: str, words: str) -> None:
        if suspicion.crashes < _ALONE_FROM:
            return  # once may be chance
        suspicion.convicted_by = f"{worker}: {words}"
        for crash in suspicion._cases:
            crash.has_culprit = True

    def _reserve(self, worker: str | None) -> None:
        if worker is None or self.reserved is None:
            self.reserved = worker
            self._on_change()

    def move(self, worker: str) -> None:
        """Reserve `worker` in place of one that does not come back."""
        self.reserved = worker
        self._on_change()

    async def take_trial(self, suspicion: Suspicion) -> None:
        """Wait until `suspicion` may be the only one on the reserved worker."""
        await self._trial.acquire()
        suspicion.on_trial = True
        self._awaiting_trial.add(suspicion)
        self._reserve(suspicion.crashed_worker)

    def progressed(self, suspicion: Suspicion) -> None:
        """End a trial that the request has passed."""
        if suspicion.cleared:
            self._end_trial(suspicion)

    def _end_trial(self, suspicion: Suspicion) -> None:
        if not suspicion.on_trial:
            return
        suspicion.on_trial = False
        self._awaiting_trial.discard(suspicion)
        self._trial.release()
        self._release_if_idle()

    def _release_if_idle(self) -> None:
        if not self._awaiting_trial and self.reserved is not None:
            self._reserve(None)

    def close(self, suspicion: Suspicion) -> None:
        """Note that the request is over, whatever its end was."""
        if not suspicion.crashes:
            return  # nearly all
        self._end_trial(suspicion)  # its time was up before it found its worker empty
        self._awaiting_trial.discard(suspicion)
        self._release_if_idle()
        for crash in suspicion._cases:
            crash.open.discard(suspicion)
            if not crash.open and not crash.has_culprit:
                self._blame(crash.worker)
