"""Finds the request that crashes engines, so that it is not retried and harms no other request.

A crash is an engine's own: an exception in its last words, a fatal signal, not a kill from outside.
The rule: a request in an engine that crashes is suspect, and retried or resumed once as after any
death. One that was in a second crash, or was alone in the first, runs on trial: one at a time, with
a worker of the crashed role for itself, until it has passed the point where it was at
the crash. What crashes an engine alone, and was in a crash before, is the culprit: it ends with the
engine's last words, and the same request is refused for a while. All crashes that it was in are
explained: they count against no other request and against no worker. A request that was to run on
trial because of them, and has an answer already, is free; the rest have their trials, in case there
was more than one culprit.

So one such request costs at most: a crash in company, a second in company, one alone. Only if it
passes the point where it crashed before does it take more: each further trial is longer. While such
requests keep coming, one costs a single crash (`newcomers.py`).

It knows requests by the rid of their current attempt and workers by name; it starts nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from pd_eagle.requests.newcomers import Newcomers
from pd_eagle.requests.suspicion import ALONE_FROM, Crash, Suspicion, likeliest_first

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

logger = logging.getLogger(__name__)

#: Suspects of one crash learn of it one after another: the likeliest is to go first. One whose
#: client does not read may learn of it much later: no worker is reserved for it until then.
_GATHERING_S, _APPEARING_S = 0.1, 1.0
#: How long a trial waits for other requests to leave a worker that is ready.
_GIVES_WAY_S = 10.0
#: For so long after its end an attempt may still be in the engine that it was aborted in.
_LINGERING_S = 5.0


class Quarantine:
    """Tracks the suspicion of every open request, and reserves workers for those that need a trial.

    `blame(worker)` is called for a crash that turned out to have no culprit; `on_change` when other
    workers are `reserved`. A trial may begin on a worker that is not empty if all in it have passed
    theirs: then a crash convicts none of them, but the next trial has the worker for itself.
    """

    def __init__(self, blame: Callable[[str], None], on_change: Callable[[], None]) -> None:
        self.reserved: frozenset[str] = frozenset()
        self.newcomers = Newcomers()
        self._blame = blame
        self._on_change = on_change
        self._open: dict[str, Suspicion] = {}
        self._ended: OrderedDict[str, float] = OrderedDict()
        self._pending: set[Suspicion] = set()  # they need a trial, or have it
        self._waiting: dict[Suspicion, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._gathering_until = 0.0
        self._on_trial: Suspicion | None = None

    # --- attempts

    def begin(self, rid: str, suspicion: Suspicion) -> None:
        """Note that an attempt begins; `end_attempt` must follow. The time of a trial counts."""
        self._open[rid] = suspicion
        suspicion.begin_attempt()
        if suspicion.on_trial:
            loop = asyncio.get_running_loop()
            loop.call_later(suspicion.trial_s, self._time_up, suspicion, suspicion.crashes)

    def end_attempt(self, rid: str, suspicion: Suspicion) -> None:
        if self._open.pop(rid, None) is not None:
            self._note_end(rid)
        suspicion.end_attempt()
        self.newcomers.leave(suspicion)
        self._end_trial(suspicion)

    def _note_end(self, rid: str) -> None:
        now = time.monotonic()
        self._ended[rid] = now
        while now - next(iter(self._ended.values())) > _LINGERING_S:
            self._ended.popitem(last=False)

    def close(self, suspicion: Suspicion) -> None:
        """Note that the request is over, whatever its end was."""
        self.newcomers.leave(suspicion)
        if not suspicion.crashes:
            return  # nearly all
        self._end_trial(suspicion)  # its time was up before it found its worker empty
        self._forget(suspicion)
        for crash in suspicion.cases:
            crash.over.add(suspicion)
            if crash.over >= crash.suspects and not crash.has_culprit:
                self._blame(crash.worker)

    # --- crashes

    def crashed(
        self, worker: str, rids: Iterable[str], words: str, *, in_prefill: bool = False
    ) -> bool:
        """Note that `worker` crashed with `rids` in it; return whether that counts against it.

        False while one of them may be the culprit; `blame` is called later if none was. Of `rids`
        those that never began here, our own probes, are no suspects; those that ended just now are.
        """
        rids = set(rids)
        suspects = {self._open[rid] for rid in rids if rid in self._open}
        if not suspects:
            return True
        all_known = not any(self._lingers(rid) for rid in rids)
        alone = len(suspects) == 1 and all_known
        self._gathering_until = time.monotonic() + _GATHERING_S
        likely = self.newcomers.likely(suspects, words)
        for bystander in suspects - likely if likely else ():
            bystander.stood_by()
        crash = Crash(worker, likely or suspects, in_prefill)
        for suspicion in crash.suspects:
            suspicion.crashed(crash, lone=alone or bool(likely))
        if alone or (len(likely) == 1 and all_known):
            self._judge(next(iter(crash.suspects)), worker, words, alone=alone, likely=bool(likely))
        self._keep_apart({one for one in crash.suspects if one.must_be_alone})
        return False

    def _lingers(self, rid: str) -> bool:
        ended_at = self._ended.get(rid)
        return ended_at is not None and time.monotonic() - ended_at <= _LINGERING_S

    def _judge(
        self, suspicion: Suspicion, worker: str, words: str, *, alone: bool, likely: bool
    ) -> None:
        before = len(suspicion.cases)
        tried = before >= ALONE_FROM or (suspicion.on_trial and suspicion.crashes >= ALONE_FROM)
        if not tried and not likely:
            return  # once may be chance
        self.newcomers.convicted(suspicion, words, alone=alone)
        suspicion.convicted_by = f"{worker}: {words}"
        self._forget(suspicion)
        others: set[Suspicion] = set()
        for crash in suspicion.cases:
            crash.has_culprit = True
            others |= crash.suspects - crash.over - {suspicion}
        for other in others:
            other.explain(suspicion.cases)
            if not other.must_be_alone:
                self._release(other)

    def _keep_apart(self, suspects: set[Suspicion]) -> None:
        if suspects:
            self._pending |= suspects
            self._reserve()
            places = ", ".join(sorted(self.reserved))
            logger.warning("%d requests go on one at a time, on %s", len(suspects), places)
            asyncio.get_running_loop().call_later(_APPEARING_S, self._forget_absent, suspects)

    def _forget_absent(self, suspects: set[Suspicion]) -> None:
        self._pending -= {one for one in suspects if not one.on_trial and one not in self._waiting}
        self._reserve()

    # --- trials

    async def take_trial(self, suspicion: Suspicion) -> None:
        """Wait until `suspicion` has its trial, `on_trial`, or needs none any more."""
        if suspicion.on_trial or not suspicion.must_be_alone:
            return
        self._keep_apart({suspicion} - self._pending)
        turn = self._waiting[suspicion] = asyncio.get_running_loop().create_future()
        self._call_next_soon()
        try:
            await turn
        except asyncio.CancelledError:
            self._end_trial(suspicion)  # the turn may have come together with the cancellation
            raise
        finally:
            self._waiting.pop(suspicion, None)

    def _call_next_soon(self) -> None:
        if self._timer is None and self._on_trial is None:
            wait_s = max(self._gathering_until - time.monotonic(), 0.0)
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._call_next)

    def _call_next(self) -> None:
        self._timer = None
        if self._on_trial is not None or not self._waiting:
            return
        chosen = min(self._waiting, key=likeliest_first)
        self._on_trial, chosen.on_trial, chosen.place_ready_since = chosen, True, None
        self._let_go(chosen)

    def _let_go(self, suspicion: Suspicion) -> None:
        turn = self._waiting.pop(suspicion, None)
        if turn is not None and not turn.done():
            turn.set_result(None)

    def _time_up(self, suspicion: Suspicion, crashes: int) -> None:
        if suspicion.on_trial and suspicion.crashes == crashes:
            suspicion.clear()
            self._end_trial(suspicion)

    def gives_way(self, suspicion: Suspicion) -> bool:
        """Return whether the one on trial has waited for others to leave its place long enough,
        though that is ready: it goes on in their company then.
        """
        now = asyncio.get_running_loop().time()
        suspicion.place_ready_since = suspicion.place_ready_since or now
        if now - suspicion.place_ready_since < _GIVES_WAY_S:
            return False
        suspicion.clear()
        self._end_trial(suspicion)
        return True

    def progressed(self, suspicion: Suspicion) -> None:
        """End a trial that the request has passed, or its time as a newcomer."""
        if suspicion.passed:
            self.newcomers.leave(suspicion)
        if suspicion.cleared:
            self._end_trial(suspicion)

    def move(self, suspicion: Suspicion, worker: str) -> None:
        """Let the trial be on `worker`."""
        suspicion.place = worker
        self._reserve()

    def have_passed(self, rids: Collection[str]) -> bool:
        """Return whether `rids` are all of requests that have passed a trial."""
        found = [self._open.get(rid) for rid in rids]
        return all(one is not None and one.crashes and one.cleared for one in found)

    def _end_trial(self, suspicion: Suspicion) -> None:
        if not suspicion.on_trial:
            return
        suspicion.on_trial = False
        self._on_trial = None
        if not suspicion.must_be_alone:
            self._pending.discard(suspicion)
        self._reserve()
        if self._waiting:
            self._call_next_soon()

    def _release(self, suspicion: Suspicion) -> None:
        """Let a request that needs no trial any more continue."""
        self._let_go(suspicion)
        self._forget(suspicion)

    def _forget(self, suspicion: Suspicion) -> None:
        self._pending.discard(suspicion)
        self._reserve()

    def _reserve(self) -> None:
        reserved = frozenset(suspicion.place for suspicion in self._pending)
        if reserved != self.reserved:
            self.reserved = reserved
            self._on_change()
