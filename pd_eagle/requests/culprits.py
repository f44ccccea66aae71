"""Requests that crashed an engine alone: the same request is refused for a while.

Two requests are the same if they ask for the same (`pd_eagle.messages.fingerprint`). How a culprit
is found is in `quarantine.py`.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from pd_eagle.errors import EngineCrashed
from pd_eagle.messages import fingerprint

if TYPE_CHECKING:
    from pd_eagle.messages import Request

#: Culprits are remembered, that many and that long.
_REMEMBERED, _REMEMBERED_S = 1024, 600.0


class Culprits:
    """The culprits of the last ten minutes, with the last words of the engines they crashed."""

    def __init__(self) -> None:
        self._words: OrderedDict[bytes, tuple[float, str]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._words)

    def convict(self, request: Request, words: str) -> None:
        """Remember `request`, which crashed an engine that said `words`."""
        if (asked := fingerprint(request)) is not None:
            self.remember(asked, words)

    def refuse(self, request: Request) -> None:
        """Raise `EngineCrashed` if the same request is a culprit."""
        if not self._words or (asked := fingerprint(request)) is None:
            return
        if words := self.words_about(asked):
            raise EngineCrashed(f"the same request crashed an engine a short time ago: {words}")

    def remember(self, asked: bytes, words: str) -> None:
        """Remember a culprit by what it asked for."""
        self._words[asked] = (time.monotonic(), words)
        self._words.move_to_end(asked)
        if len(self._words) > _REMEMBERED:
            self._words.popitem(last=False)

    def words_about(self, asked: bytes) -> str | None:
        """Return the last words of the engine that such a request crashed, or None."""
        since = time.monotonic() - _REMEMBERED_S
        while self._words and next(iter(self._words.values()))[0] < since:
            self._words.popitem(last=False)
        found = self._words.get(asked)
        return None if found is None else found[1]
