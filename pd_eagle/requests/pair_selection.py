"""Which pair gets a request's next attempt, and the wait for one.

A request waits for a pair that serves, for its trial if it needs one (`quarantine.py`), and for
room in the prefill engine. It sends nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from pd_eagle.errors import DeadlineExceeded, NotServing, PdEagleError

if TYPE_CHECKING:
    from pd_eagle.requests.attempts import Attempts
    from pd_eagle.requests.fleet import Fleet
    from pd_eagle.requests.prefill_window import PrefillWindows, Turn
    from pd_eagle.requests.quarantine import Quarantine
    from pd_eagle.requests.router import Pair
    from pd_eagle.requests.suspicion import Suspicion

logger = logging.getLogger(__name__)

#: How often a request on trial looks whether a worker is empty.
_EMPTY_POLL_S = 0.1


class PairSelection:
    """Selects pairs among the working ones of `fleet`, none that `quarantine` reserves."""

    def __init__(self, fleet: Fleet, quarantine: Quarantine, windows: PrefillWindows) -> None:
        self._fleet = fleet
        self._quarantine = quarantine
        self._windows = windows

    async def select(self, attempts: Attempts) -> tuple[Pair, Turn]:
        """Return a pair whose prefill engine has room for the prompt, and the turn that it holds.

        Neither half is sent before: decode would only keep KV for a prompt that waits. Raises
        `NotServing` or `DeadlineExceeded`.
        """
        while True:
            pair = await self._wait_for_pair(attempts)
            prefill = pair.prefill.name if pair.prefill is not None else None
            turn = self._windows.turn(prefill, len(attempts.request.input_ids))
            if turn.granted:
                return pair, turn
            await self._wait_for_room(turn, attempts.deadline)
            if attempts.suspicion.on_trial or self._may_still_serve(pair):
                return pair, turn
            turn.release()

    async def _wait_for_room(self, turn: Turn, deadline: float) -> None:
        try:
            await turn.wait(deadline)
        except BaseException:
            turn.release()
            raise

    def _may_still_serve(self, pair: Pair) -> bool:
        """Return whether `pair` would be picked now, after a wait."""
        return pair.name not in self._fleet.router.broken and all(
            worker.state == "ready" and worker.name not in self._quarantine.reserved
            for worker in pair.workers
        )

    # --- a pair that serves

    async def _wait_for_pair(self, attempts: Attempts) -> Pair:
        """Return a pair, waiting for one that comes back as long as the deadline allows.

        A request that needs a trial waits for that first.
        """
        try:
            async with asyncio.timeout_at(attempts.deadline):
                await self._quarantine.take_trial(attempts.suspicion)
                await self._quarantine.newcomers.enter(attempts.suspicion)
                while True:
                    changed = self._fleet.changed
                    if pair := await self._try_to_pick(attempts):
                        return pair
                    await _next(changed, poll=attempts.suspicion.on_trial)
        except TimeoutError:
            kind = DeadlineExceeded if attempts.last_failed is None else NotServing
            raise kind("no pair of workers came back before the request's deadline") from None

    async def _try_to_pick(self, attempts: Attempts) -> Pair | None:
        """Return a pair, None if there may be one later. Raises `NotServing` if not."""
        try:
            pair = self._pick(attempts)
        except NotServing:
            if self._fleet.status in ("draining", "failed"):
                raise
            return None
        proved = not attempts.suspicion.on_trial or await self._is_proved(pair)
        return pair if proved else None

    def _pick(self, attempts: Attempts) -> Pair:
        if attempts.suspicion.on_trial:
            return self._pick_for_trial(attempts.suspicion)
        tried = () if attempts.last_failed is None else (attempts.last_failed,)
        return self._fleet.router.pick(tried, without=self._quarantine.reserved)

    # --- trials

    def _pick_for_trial(self, suspicion: Suspicion) -> Pair:
        """Return a pair whose worker of the role that crashed has no other request.

        The one that crashed is preferred. If it is ready, but not empty for too long, the trial is
        given up; until then requests that have passed theirs may be in it.
        """
        router, quarantine = self._fleet.router, self._quarantine
        place = next(worker for worker in self._fleet.workers if worker.name == suspicion.place)
        ready = [w for w in self._fleet.workers if w.role == place.role and w.state == "ready"]
        if place.state == "failed" and ready:  # given up: another takes its place, and is emptied
            place = min(ready, key=lambda worker: worker.inflight)
            quarantine.move(suspicion, place.name)
        anywhere = [place.name, *(worker.name for worker in ready if worker is not place)]
        try:
            pair, name = router.pick_apart(anywhere, lambda rids: not rids)
        except NotServing:
            if place.state == "ready" and quarantine.gives_way(suspicion):
                return router.pick()
            pair, name = router.pick_apart([place.name], quarantine.have_passed)
        quarantine.move(suspicion, name)
        return pair

    async def _is_proved(self, pair: Pair) -> bool:
        """Return whether both engines of `pair` have answered since they were started.

        Otherwise one that crashes at anything would make a culprit of every request.
        """
        if all(worker.proved for worker in pair.workers):
            return True
        try:
            await self._fleet.canary.probe(pair)
        except PdEagleError as error:
            logger.warning("%s is not fit for a trial: %s", pair.name, error)
            return False
        return True


async def _next(changed: asyncio.Event, *, poll: bool) -> None:
    """Wait until a worker or a link has changed; with `poll`, for a moment at most."""
    if not poll:
        await changed.wait()
        return
    with contextlib.suppress(TimeoutError):  # there is no event for a worker that becomes empty
        async with asyncio.timeout(_EMPTY_POLL_S):
            await changed.wait()
