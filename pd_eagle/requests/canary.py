"""Whether every pair's link works: first tokens of real traffic count, otherwise a probe's.

A pair that cannot carry a token is marked as broken. If it stays broken, one of its halves is
restarted: the one that fails with all its partners, else the one where requests wait for the other.
Slow is not broken: a failed probe counts only where both workers answer pings and are otherwise
idle, and its timeout grows with what probes took lately. It does not know what a probe is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from typing import TYPE_CHECKING

from pd_eagle.errors import DeadlineExceeded, PdEagleError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from pd_eagle.requests.router import Pair, Router
    from pd_eagle.workers.worker import Worker

logger = logging.getLogger(__name__)

#: Between two rounds.
_PAUSE_S = 0.05
#: The first step of an engine may have kernels to compile, on a GPU for ten seconds and more.
_FIRST_PROBE_TIMEOUT_S = 120.0
_PROBE_TIMEOUT_S = 10.0
_LONGEST_PROBE_TIMEOUT_S = 60.0
#: A probe may take this many times as long as the slowest of the last ones.
_TIMES_THE_SLOWEST = 5.0
_PROBES_REMEMBERED = 20
#: Probes in a row that a link may fail before a worker is restarted.
_PATIENCE = 2
#: A request that waits this long for its first token makes its link suspect.
_DOUBT_S = 5.0
#: A worker whose last sign of life, or whose load, is older than this is busy with something else.
_ABSENT_S = 3.0
#: A link that has carried nothing for this long is judged even if its workers are busy.
_LONGEST_EXCUSE_S = 300.0
_FULL = 0.9


class Canary:
    """Watches the links of all pairs that the router hands out."""

    def __init__(
        self,
        router: Router,
        workers: Sequence[Worker],
        carry_token: Callable[[Pair, float], Awaitable[None]],
        on_change: Callable[[], None],
        interval_s: float,
    ) -> None:
        self._router = router
        self._workers = workers
        self._carry_token = carry_token
        self._on_change = on_change
        self._interval_s = interval_s
        self._doubt_s = min(_DOUBT_S, interval_s)
        self._carried_at: dict[str, float] = {}
        self._failed_at: dict[str, float] = {}
        self._failing_since: dict[str, float] = {}
        self._not_before: dict[str, float] = {}  # when a probe may be tried again
        self._failures: Counter[str] = Counter()
        self._doubted: set[str] = set()
        self._restarted: Counter[str] = Counter()  # how often, since it last carried a token
        self._waiting: dict[str, tuple[str, float]] = {}  # rid → pair, since when
        self._took_s: deque[float] = deque(maxlen=_PROBES_REMEMBERED)
        self._doubt = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def probe(self, pair: Pair, timeout_s: float = _FIRST_PROBE_TIMEOUT_S) -> None:
        """Carry a token of our own over `pair`; raises what that fails with."""
        await self._carry_token(pair, timeout_s)
        self.carried(pair)
        logger.debug("%s carried a token end to end", pair.name)

    # --- what real traffic says

    def began(self, rid: str, pair: Pair) -> None:
        """Note that a request was sent to `pair`; `ended` must follow."""
        self._waiting[rid] = pair.name, time.monotonic()

    def first_token(self, rid: str, pair: Pair) -> None:
        """Note that decode has answered that request, so that its KV has come over the link."""
        self._waiting.pop(rid, None)
        self.carried(pair)

    def ended(self, rid: str) -> None:
        """Note that the request is over; its link is suspect if the first token was overdue."""
        if waiting := self._waiting.pop(rid, None):
            self._doubt_if_stuck(*waiting)

    def carried(self, pair: Pair) -> None:
        """Note that `pair` has just carried a token end to end."""
        self._carried_at[pair.name] = time.monotonic()
        self._doubted.discard(pair.name)
        for counts in (self._failures, self._restarted):
            counts.pop(pair.name, None)
        if pair.name in self._router.broken:
            self._router.mark_working(pair.name)
            logger.warning("the link of %s works again", pair.name)
            self._on_change()

    def doubt(self, pair: Pair) -> None:
        """Note that a request failed on `pair` in transfer: it is probed at once."""
        self._doubted.add(pair.name)
        self._doubt.set()

    def _doubt_if_stuck(self, name: str, since: float) -> None:
        stuck = time.monotonic() - since >= self._doubt_s
        if stuck and self._carried_at.get(name, 0.0) < since:
            self._doubted.add(name)
            self._doubt.set()

    # --- the watch

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._watch())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            try:
                # Not wait_for: that of Python 3.11 loses a cancellation that comes with the doubt.
                async with asyncio.timeout(min(self._interval_s / 4, 1.0)):
                    await self._doubt.wait()
            except TimeoutError:
                pass
            # A doubt may be raised again in every round, as long as no probe is due, and neither an
            # event that is set nor a round without probes yields to the event loop.
            await asyncio.sleep(_PAUSE_S)
            self._doubt.clear()
            try:
                await self._round()
            except Exception:  # a defect must not end the watch
                logger.exception("links could not be checked")
                await asyncio.sleep(self._interval_s)

    async def _round(self) -> None:
        for name, since in self._waiting.values():
            self._doubt_if_stuck(name, since)
        due = [pair for pair in self._router.all_pairs() if self._due(pair)]
        await asyncio.gather(*(self._check(pair) for pair in due))
        if self._calm():
            self._restart_one()
        self._forget_the_gone()

    def _due(self, pair: Pair) -> bool:
        now = time.monotonic()
        if now < self._not_before.get(pair.name, 0.0):
            return False
        if pair.name in self._router.broken:
            return True
        if not self._calm():  # a start takes all the CPU there is
            return False
        silent_s = now - self._carried_at.get(pair.name, 0.0)
        return pair.name in self._doubted or silent_s > self._interval_s

    def _calm(self) -> bool:
        return not any(w.state in ("starting", "restarting", "suspect") for w in self._workers)

    async def _check(self, pair: Pair) -> None:
        began = time.monotonic()
        try:
            await self.probe(pair, self._limit_s())
        except PdEagleError as error:
            late = isinstance(error, DeadlineExceeded)
            if excuse := self._excuse(pair, began) if late else None:
                logger.info("%s did not carry a token, but %s", pair.name, excuse)
                # Back off: probes must not be the load that slows them down.
                self._not_before[pair.name] = 2 * time.monotonic() - began
            else:
                self._failed(pair, error)
        else:
            self._took_s.append(time.monotonic() - began)

    def _limit_s(self) -> float:
        """Return how long a probe may take, in its workers' own time."""
        slow_s = _TIMES_THE_SLOWEST * max(self._took_s, default=0.0)
        return min(max(_PROBE_TIMEOUT_S, slow_s), _LONGEST_PROBE_TIMEOUT_S)

    def _excuse(self, pair: Pair, began: float) -> str | None:
        """Return why a probe that timed out says nothing about the link."""
        carried_at = self._carried_at.get(pair.name, began)
        if carried_at > began:
            return "it carried others meanwhile"
        if began - carried_at > _LONGEST_EXCUSE_S:
            return None
        return next(filter(None, map(_why_busy, pair.workers)), None)

    def _failed(self, pair: Pair, error: PdEagleError) -> None:
        if any(worker.state != "ready" for worker in pair.workers):
            return  # not the link: the supervisor handles the worker
        self._failures[pair.name] += 1
        self._failed_at[pair.name] = now = time.monotonic()
        if self._failures[pair.name] == 1:
            self._failing_since[pair.name] = now
        self._doubted.discard(pair.name)
        failures = self._failures[pair.name]
        logger.warning("%s did not carry a token (%d in a row): %s", pair.name, failures, error)
        self._router.mark_broken(pair.name)
        self._on_change()

    # --- the restart of a broken link's worker

    def _restart_one(self) -> None:
        pairs = self._router.all_pairs()
        for pair in pairs:
            if self._failures[pair.name] < _PATIENCE:
                continue
            unknown = [other for other in pairs if self._must_be_known(other, pair)]
            for other in unknown:
                self.doubt(other)
            if not unknown:
                self._restart(pair, self._worse_half(pair, pairs))
                return

    def _must_be_known(self, other: Pair, pair: Pair) -> bool:
        """Return whether nothing is known of another link of a half of `pair`
        since that fails.
        """
        if other.name == pair.name or not any(other.has(worker.name) for worker in pair.workers):
            return False
        known_at = max(
            self._failed_at.get(other.name, 0.0),
            self._carried_at.get(other.name, 0.0),
            self._not_before.get(other.name, 0.0),
        )
        return known_at < self._failing_since[pair.name]

    def _worse_half(self, pair: Pair, pairs: Sequence[Pair]) -> Worker:
        if pair.prefill is None:
            return pair.decode
        halves = [pair.decode, pair.prefill]
        if _waits_for_its_partner(pair.prefill):  # for decode's handshake
            halves.reverse()

        def badness(worker: Worker) -> tuple[bool, int]:
            links = [other.name in self._router.broken for other in pairs if other.has(worker.name)]
            return all(links), sum(links)

        worse = max(halves, key=badness)  # of equals the first
        if self._restarted[pair.name] % 2:  # that did not help
            worse = pair.prefill if worse is pair.decode else pair.decode
        return worse

    def _restart(self, pair: Pair, worker: Worker) -> None:
        for other in self._router.all_pairs():
            if other.has(worker.name) and other.name in self._router.broken:
                self._restarted[other.name] += 1
                self._failures.pop(other.name, None)
        worker.declare_dead(f"the link of {pair.name} stays broken")

    def _forget_the_gone(self) -> None:
        present = {pair.name for pair in self._router.all_pairs()}
        # A restarted worker has a new link; if it was restarted for its link, only a token shows
        # that the new one works.
        if gone := self._router.broken - present - self._restarted.keys():
            self._router.mark_working(*gone)
            self._on_change()


def _why_busy(worker: Worker) -> str | None:
    """Return what keeps a worker from answering a probe, None if it should have answered."""
    if time.monotonic() - worker.heard_at > _ABSENT_S:
        return f"{worker.name} answers no pings"  # the supervisor judges whether it hangs
    load = worker.load
    if load is None:
        return None
    if time.time() - load.snapshot_at > _ABSENT_S:
        return f"{worker.name} is in a long step"
    if load.queued and (load.running or worker.role != "decode"):  # else nothing makes room
        return f"{load.queued} requests wait for {worker.name}"
    capacity = worker.info.max_total_tokens if worker.info else 0
    if load.running and load.used_tokens >= _FULL * capacity:
        return f"{worker.name} is full"
    return None


def _waits_for_its_partner(worker: Worker) -> bool:
    return worker.load is not None and worker.load.awaiting_partner > 0
