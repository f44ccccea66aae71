"""What is known of one request that was in engines that crashed, and of one crash.

How far a request must get on trial to be cleared follows from here. It knows no workers' states and
waits for nothing.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

#: Crashes after which a request needs a trial.
ALONE_FROM = 2
#: A trial ends this many tokens beyond where the request was at its last crash, and as many more as
#: it had made when it crashed, up to a limit; and after so many seconds. Both grow with every
#: further crash.
_TRIAL_TOKENS, _MOST_MADE = 2, 8
# A busy machine takes its time for a few tokens; what never makes them must not be waited for.
_TRIAL_S = 60.0
_TRIAL_TOKENS_GROWTH, _TRIAL_S_GROWTH = 8, 2

_BOTH_ENGINES_TOKENS = 2

_numbers = itertools.count()


@dataclass(eq=False, slots=True)
class Crash:
    """One crash whose culprit is not known yet; `suspects` are the requests that may be it."""

    worker: str
    suspects: set[Suspicion]
    #: What a prefill engine has to do with a request is over with the first token.
    in_prefill: bool = False
    #: Those that have ended since, or are explained.
    over: set[Suspicion] = field(default_factory=set)
    has_culprit: bool = False


@dataclass(eq=False, slots=True)
class Suspicion:
    """What is known of one request, over all its attempts. `tokens` is how far its answer is."""

    tokens: int = 0
    #: The crashes that it was in and whose culprit is not known.
    cases: list[Crash] = field(default_factory=list)
    #: How many crashes it was in, including those that were explained since.
    crashes: int = 0
    #: The last words of the engine that it crashed alone.
    convicted_by: str | None = None
    on_trial: bool = False
    #: Whether it is one of the few without an answer that may be in engines (`newcomers.py`).
    entering: bool = False
    #: Where its trial is to be: the worker that crashed last with it.
    place: str = ""
    #: Since when (the loop's clock) its place could have served it, had it been empty.
    place_ready_since: float | None = None
    number: int = field(default_factory=lambda: next(_numbers))
    #: How often an engine crashed, in company, when it was this one's trial.
    crashed_on_trial: int = 0
    _lone: bool = False
    _held: bool = False
    _in_prefill: bool = False
    _cleared_at: float = 0
    _began_at: int = 0
    _passed: bool = False

    @property
    def must_be_alone(self) -> bool:
        """Whether its next attempt needs a trial."""
        doubted = len(self.cases) >= ALONE_FROM or (self._lone and bool(self.cases))
        return (doubted or self._held) and not self.cleared and self.convicted_by is None

    @property
    def cleared(self) -> bool:
        """Whether it has come past where it was at its last crash."""
        return self.tokens >= self._cleared_at

    @property
    def trial_s(self) -> float:
        """How long its trial may take: others wait meanwhile."""
        return _TRIAL_S * float(_TRIAL_S_GROWTH ** min(self._severity, 8))

    @property
    def _severity(self) -> int:
        return max(len(self.cases) - ALONE_FROM, 0)

    def crashed(self, crash: Crash, *, lone: bool) -> None:
        self.crashes += 1
        self.crashed_on_trial += self.on_trial
        self.cases.append(crash)
        self.place, self._in_prefill = crash.worker, crash.in_prefill
        self._lone = self._lone or lone
        self._cleared_at = math.inf  # until its attempt ends: some tokens are still on their way

    @property
    def passed(self) -> bool:
        """Whether both engines of a pair have worked on it: one attempt has made two tokens.

        The first may come from the prefill engine, which makes another at every attempt.
        """
        return self._passed or self.tokens - self._began_at >= _BOTH_ENGINES_TOKENS

    def stood_by(self) -> None:
        """Note that it was in an engine that another request has crashed."""
        self.crashes += 1

    def begin_attempt(self) -> None:
        self._passed = self.passed
        self._began_at = self.tokens

    def end_attempt(self) -> None:
        if self._cleared_at < math.inf:
            return
        made = min(self.tokens - self._began_at, _MOST_MADE)
        more = made + _TRIAL_TOKENS * _TRIAL_TOKENS_GROWTH ** min(self._severity, 6)
        self._cleared_at = self.tokens + (1 if self._in_prefill else more)

    def clear(self) -> None:
        self._cleared_at = self.tokens

    def explain(self, crashes: Collection[Crash]) -> None:
        """Note that another request has caused `crashes`."""
        self._held = self.must_be_alone and self.tokens <= _TRIAL_TOKENS
        self.cases = [crash for crash in self.cases if crash not in crashes]


def likeliest_first(one: Suspicion) -> tuple[int, int, int, int]:
    """Order by who crashed on trial, was in most crashes, came least far, and came last."""
    return (-one.crashed_on_trial, -len(one.cases), one.tokens, -one.number)
