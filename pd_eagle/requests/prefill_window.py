"""Queues prompts in the front instead of in a prefill engine, shortest first.

A prefill engine is first come, first served, so a short prompt waits there behind every long one.
Here few tokens are outstanding in an engine at a time; of the waiting prompts the shortest goes
first, and waiting counts like being shorter. It knows no pairs and no requests, only tokens.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pd_eagle.errors import DeadlineExceeded

if TYPE_CHECKING:
    from collections.abc import Callable

#: What a second of waiting is worth. A prompt is not overtaken by one that comes later than its own
#: tokens divided by this: one second for a prompt of one chunk of SGLang's (0.5.23) on 80 GB cards.
AGEING_TOKENS_PER_S = 8192.0


@dataclass(eq=False, slots=True)
class Turn:
    """One prompt's place in a window; `release` it however its prefill ends: idempotent."""

    tokens: int
    _window: PrefillWindow | None = None
    _granted: asyncio.Future[None] | None = None
    _over: bool = False

    async def wait(self, deadline: float) -> None:
        """Return when the prompt may be sent; `deadline` is a time of the running loop.

        Raises `DeadlineExceeded`. Whatever it raises, the turn must still be released.
        """
        if self._granted is None or self._granted.done():
            return
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.shield(self._granted)
        except TimeoutError:
            raise DeadlineExceeded(
                "the request's time was up before a prefill engine had room for its prompt"
                " (PREFILL_WINDOW_TOKENS)"
            ) from None

    @property
    def granted(self) -> bool:
        return self._granted is None or self._granted.done()

    def release(self) -> None:
        """Give the tokens back, or the place in the queue."""
        if not self._over and self._window is not None:
            self._over = True
            self._window._ended(self)

    def releasing(self, on_phase: Callable[[str, float], None]) -> Callable[[str, float], None]:
        """Return `on_phase` of a handoff that also releases the turn when prefill is over."""
        if self._window is None:
            return on_phase

        def noted(phase: str, seconds: float) -> None:
            if phase == "prefill":
                self.release()
            on_phase(phase, seconds)

        return noted


@dataclass(eq=False, slots=True)
class PrefillWindow:
    """The tokens outstanding in one prefill engine, of at most `limit_tokens`.

    A prompt that is larger goes alone. `clock` returns seconds.
    """

    limit_tokens: int
    clock: Callable[[], float]
    outstanding: int = 0
    _waiting: list[tuple[float, int, Turn]] = field(default_factory=list)
    _order: itertools.count[int] = field(default_factory=itertools.count)

    @property
    def held(self) -> int:
        """How many prompts wait here."""
        return sum(not turn._over for _, _, turn in self._waiting)

    def turn(self, tokens: int) -> Turn:
        """Return a turn for a prompt of `tokens`; it is granted at once where there is room."""
        turn = Turn(tokens, self, asyncio.get_running_loop().create_future())
        rank = tokens + self.clock() * AGEING_TOKENS_PER_S
        heapq.heappush(self._waiting, (rank, next(self._order), turn))
        self._grant()
        return turn

    def _grant(self) -> None:
        while self._waiting:
            turn = self._waiting[0][2]
            if not turn._over:
                # No smaller prompt overtakes the first: that bounds its wait.
                if self.outstanding and self.outstanding + turn.tokens > self.limit_tokens:
                    return
                assert turn._granted is not None
                self.outstanding += turn.tokens
                turn._granted.set_result(None)
            heapq.heappop(self._waiting)

    def _ended(self, turn: Turn) -> None:
        if turn.granted:
            self.outstanding -= turn.tokens
        self._grant()


class PrefillWindows:
    """A window for each prefill engine, by name; without `limit_tokens` no prompt waits."""

    def __init__(self, limit_tokens: int | None) -> None:
        self.limit_tokens = limit_tokens
        self.by_worker: dict[str, PrefillWindow] = {}

    def held(self, worker: str) -> int:
        """Return how many prompts wait for the prefill engine of `worker`."""
        window = self.by_worker.get(worker)
        return window.held if window is not None else 0

    def turn(self, worker: str | None, tokens: int) -> Turn:
        """Return a turn at the prefill engine of `worker`; None is a unified plan's."""
        if worker is None or not self.limit_tokens:
            return Turn(tokens)
        window = self.by_worker.get(worker)
        if window is None:
            clock = asyncio.get_running_loop().time
            window = self.by_worker[worker] = PrefillWindow(self.limit_tokens, clock)
        return window.turn(tokens)
