"""While requests that crash engines keep coming: requests without an answer enter a few at a time.

A new culprit is in an engine for the first time when that crashes; the requests beside it have
answers already, and have done no harm for that long. So for a while after a conviction few requests
without an answer are in engines at a time. A crash with the last words of a culprit that crashed
its engine alone, at the same early point, then makes suspects only of those, and of a single one a
culprit: one death, not three, and the others are resumed at once. What that rests on is proved anew
each minute by a request that crashes an engine alone.

How many may enter follows their progress: one after a crash, and more the more have passed.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from pd_eagle.requests.suspicion import Suspicion

#: For so long after a conviction requests enter a few at a time.
_WATCHFUL_S = 60.0
#: For so long a culprit that crashed an engine alone speaks against others.
_PROOF_S = 60.0
#: So many have to pass before one more may enter at a time.
_PASSED_PER_PLACE = 4
#: A request that has no answer after so long holds no place any more: its prompt is long.
_HOLDS_S = 10.0

#: Words differ in identifiers only.
_IDENTIFIER = re.compile(r"\b[0-9a-f]{16,}\b")


class Newcomers:
    """Lets requests without an answer in, and says which of them a crash may have come from."""

    def __init__(self) -> None:
        self._watchful_until = 0.0
        self._proofs: dict[str, float] = {}  # last words of culprits that crashed at once, until
        self._in: set[Suspicion] = set()
        self._passed = 0
        self._waiting: deque[tuple[Suspicion, asyncio.Future[None]]] = deque()

    # --- what is known of culprits

    def convicted(self, suspicion: Suspicion, words: str, *, alone: bool) -> None:
        """Note a culprit. Only one that was `alone` in its engine, at its start, is a proof."""
        now = time.monotonic()
        self._watchful_until = now + _WATCHFUL_S
        if not alone:
            return
        if not suspicion.passed:
            self._proofs[_kind(words)] = now + _PROOF_S
        else:  # these words come from requests with an answer, too
            self._proofs.pop(_kind(words), None)

    def likely(self, suspects: Collection[Suspicion], words: str) -> set[Suspicion]:
        """Return those of `suspects` that an engine's last `words` speak against, if any."""
        self._passed = 0
        if time.monotonic() > self._proofs.get(_kind(words), 0.0):
            return set()
        return {one for one in suspects if not one.passed}

    # --- who may enter

    async def enter(self, suspicion: Suspicion) -> None:
        """Wait until `suspicion` may be sent to engines; `leave` must follow."""
        if not self._must_wait(suspicion):
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((suspicion, turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            self.leave(suspicion)  # the turn may have come together with the cancellation
            raise

    def _must_wait(self, suspicion: Suspicion) -> bool:
        new = not suspicion.passed and not suspicion.entering
        return (
            new
            and not suspicion.on_trial
            and (time.monotonic() < self._watchful_until or bool(self._waiting))
        )

    def leave(self, suspicion: Suspicion) -> None:
        """Note that `suspicion` has passed, is over or waits again."""
        if not suspicion.entering:
            return
        suspicion.entering = False
        self._in.discard(suspicion)
        self._passed += suspicion.passed
        self._admit()

    def _admit(self) -> None:
        while self._waiting and len(self._in) < 1 + self._passed // _PASSED_PER_PLACE:
            suspicion, turn = self._waiting.popleft()
            if turn.done():
                continue
            suspicion.entering = True
            self._in.add(suspicion)
            asyncio.get_running_loop().call_later(_HOLDS_S, self.leave, suspicion)
            turn.set_result(None)


def _kind(words: str) -> str:
    return _IDENTIFIER.sub("*", words)
