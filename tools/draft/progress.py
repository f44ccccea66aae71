"""One line now and then that says how far a long loop is and when it will end."""

from __future__ import annotations

import sys
import time


class Progress:
    """Counts units of work; prints to standard error at most every ``every_s`` seconds."""

    def __init__(self, name: str, total: int, every_s: float = 5.0):
        self._name = name
        self._total = total
        self._every_s = every_s
        self._start = self._said = time.monotonic()
        self._done = 0
        self._note = ""

    def add(self, count: int, note: str = "") -> None:
        """Count ``count`` more units; the last ``note`` is shown whenever a line is due."""
        self._done += count
        self._note = note or self._note
        now = time.monotonic()
        if now - self._said >= self._every_s or self._done >= self._total:
            self._said = now
            self._say(now - self._start)

    def _say(self, spent_s: float) -> None:
        left_s = spent_s / self._done * (self._total - self._done)
        share = self._done / self._total
        line = f"{self._name} {self._done}/{self._total} {share:.0%} {spent_s:.0f} s"
        print(f"{line}, {left_s:.0f} s left  {self._note}", file=sys.stderr, flush=True)
