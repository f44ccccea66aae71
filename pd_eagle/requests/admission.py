"""Which requests run now, wait, or are refused: SGLang's own limits do not hold in PD (0.5.23).

Bounded by requests and by KV tokens. Waiting requests are in one queue per group, and the queues
are served round robin, so that a batch of a thousand does not hold up a single stream. It does not
know what a request is.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass

from pd_eagle.errors import DeadlineExceeded, Overloaded, PdEagleError, TooManyRequests


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_tokens` are KV tokens of all serving engines; `queue_timeout_s` is the longest wait;
    `max_per_client` counts requests that run and that wait."""

    max_inflight: int
    max_tokens: int
    max_queue: int
    queue_timeout_s: float
    max_per_client: int | None = None


@dataclass(eq=False, slots=True)
class _Waiting:
    cost: int
    turn: asyncio.Future[None]

    @property
    def has_turn(self) -> bool:
        """Whether a place is held for it; true before the waiting task has been woken."""
        return self.turn.done() and not self.turn.cancelled()


class Admission:
    """Admits requests to the service, within `limits`."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.inflight = 0
        self.tokens = 0
        self.refused: Counter[str] = Counter()
        self._clients: Counter[str] = Counter()
        self._lines: OrderedDict[object, deque[_Waiting]] = OrderedDict()
        self._queued = 0

    @property
    def queued(self) -> int:
        return self._queued

    def refuse_if_full(self) -> None:
        """Raise `Overloaded` if there is no place in the queue for one more.

        Requests whose body is still being read count: they will need a place too.
        """
        places = self.limits.max_inflight + self.limits.max_queue
        if self._is_full() or self._clients.total() >= places:
            raise self._overloaded()

    def _is_full(self) -> bool:
        return self._queued >= self.limits.max_queue and not self._has_room(0)

    def _overloaded(self) -> Overloaded:
        self.refused["queue_full"] += 1
        return Overloaded(
            f"{self.inflight} requests run and {self._queued} wait: no more are taken "
            "(PD_MAX_INFLIGHT, PD_MAX_QUEUE)"
        )

    def admit_client(self, client: str) -> None:
        """Count one more open request of `client`; `dismiss_client` must follow.

        Raises `TooManyRequests` if that is more than one client may have.
        """
        limit = self.limits.max_per_client
        if limit is not None and self._clients[client] >= limit:
            self.refused["client_limit"] += 1
            raise TooManyRequests(
                f"{client} has {self._clients[client]} requests open: wanted at most {limit} "
                "(PD_MAX_INFLIGHT_PER_CLIENT)"
            )
        self._clients[client] += 1

    def dismiss_client(self, client: str) -> None:
        self._clients[client] -= 1
        if not self._clients[client]:
            del self._clients[client]

    async def enter(self, group: object, cost: int, deadline: float | None = math.inf) -> None:
        """Wait for a turn; `cost` is in KV tokens. `leave` must follow, with the same cost.

        `deadline` is a time of the running loop. Raises `Overloaded` at once when the queue is
        full, and after the queue timeout; `DeadlineExceeded` when the deadline comes first. Without
        a deadline it waits without limit: for calls of this process itself.
        """
        if not self._queued and self._has_room(cost):
            self._take(cost)
            return
        if deadline is not None and self._is_full():
            raise self._overloaded()
        waiting = _Waiting(cost, asyncio.get_running_loop().create_future())
        self._lines.setdefault(group, deque()).append(waiting)
        self._queued += 1
        patience_ends = asyncio.get_running_loop().time() + self.limits.queue_timeout_s
        last_turn = None if deadline is None else min(patience_ends, deadline)
        try:
            # Not wait_for: that of Python 3.11 loses a cancellation that comes with the turn.
            async with asyncio.timeout_at(last_turn):
                await waiting.turn
        except TimeoutError:
            # Else the turn came in the same step of the loop as the timeout: it is in time.
            if not waiting.has_turn:
                raise self._too_late(deadline, patience_ends) from None
        except asyncio.CancelledError:
            if waiting.has_turn:
                self.leave(cost)  # the turn came together with the cancellation
            raise
        finally:
            if not waiting.has_turn:
                self._withdraw(group, waiting)

    def _too_late(self, deadline: float | None, patience_ends: float) -> PdEagleError:
        if deadline is not None and deadline <= patience_ends:
            return DeadlineExceeded("the request's time was up before its turn came")
        self.refused["queue_timeout"] += 1
        return Overloaded(f"no turn within {self.limits.queue_timeout_s:g} s (QUEUE_TIMEOUT_S)")

    def leave(self, cost: int) -> None:
        self.inflight -= 1
        self.tokens -= cost
        self._call_next()

    def _has_room(self, cost: int) -> bool:
        # One that is larger than everything runs alone.
        fits = self.tokens + cost <= self.limits.max_tokens or not self.inflight
        return self.inflight < self.limits.max_inflight and fits

    def _take(self, cost: int) -> None:
        self.inflight += 1
        self.tokens += cost

    def _call_next(self) -> None:
        while self._lines:
            group, line = next(iter(self._lines.items()))
            waiting = line[0]
            if not self._has_room(waiting.cost):
                return  # first come, first served: a smaller one does not overtake
            line.popleft()
            self._queued -= 1
            del self._lines[group]
            if line:
                self._lines[group] = line  # round robin
            if not waiting.turn.done():
                self._take(waiting.cost)
                waiting.turn.set_result(None)

    def _withdraw(self, group: object, waiting: _Waiting) -> None:
        line = self._lines.get(group)
        if line and waiting in line:
            line.remove(waiting)
            self._queued -= 1
            if not line:
                del self._lines[group]
            self._call_next()
