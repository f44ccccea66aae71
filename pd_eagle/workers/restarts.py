"""How often one worker was restarted recently, and when it is retried. It starts nothing."""

from __future__ import annotations

import random
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When a dead worker is started again: at most `limit` times in `window_s` of serving.

    The delay doubles from `first_delay_s` to `longest_delay_s`, with 25 % jitter, so that workers
    that died together do not restart together. Over the limit the worker is given up, and retried
    after `given_up_delay_s`, then after twice as long, and so on to `longest_given_up_delay_s`.
    """

    limit: int = 5
    window_s: float = 300.0
    first_delay_s: float = 0.1
    longest_delay_s: float = 30.0
    given_up_delay_s: float = 60.0
    longest_given_up_delay_s: float = 900.0
    hang_timeout_s: float = 30.0
    start_timeout_s: float = 1800.0

    def delay_s(self, recent: int) -> float:
        """Return the delay before the next restart, after `recent` others within the window."""
        return _doubled(self.first_delay_s, recent, self.longest_delay_s)

    def given_up_s(self, tries: int) -> float:
        """Return the delay of a worker that was given up and retried `tries` times since."""
        return _doubled(self.given_up_delay_s, tries, self.longest_given_up_delay_s)


def _doubled(first_s: float, times: int, longest_s: float) -> float:
    return min(first_s * 2.0 ** min(times, 64), longest_s) * random.uniform(0.75, 1.25)


class RestartHistory:
    """Restarts of one worker, each forgotten after `window_s` of serving.

    Time in which it did not serve does not count: else a worker whose start takes a minute could
    crash again and again without reaching the limit.
    """

    def __init__(self, window_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.tries_since_given_up = 0
        self._window_s = window_s
        self._clock = clock
        self._served_s = 0.0
        self._up_since: float | None = None
        self._restarts: deque[float] = deque()

    def came_up(self) -> None:
        self._up_since = self._clock()

    def went_down(self) -> None:
        self._served_s, self._up_since = self._now_s(), None

    def add(self) -> None:
        """Count one restart, or a crash that should have been one."""
        self._restarts.append(self._now_s())

    @property
    def recent(self) -> int:
        while self._restarts and self._now_s() - self._restarts[0] >= self._window_s:
            self._restarts.popleft()
        return len(self._restarts)

    def _now_s(self) -> float:
        up_s = 0.0 if self._up_since is None else self._clock() - self._up_since
        return self._served_s + up_s
