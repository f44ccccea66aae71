"""The requests in one engine, and who gets their events; does not know how these are sent."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pd_eagle.messages import Failed

if TYPE_CHECKING:
    from collections.abc import Callable

    from pd_eagle.messages import Event

# An engine has certainly dropped an aborted request after this time.
_ABORT_TAKES_S = 5.0


class OpenRequests:
    """Open requests by rid, and those that were aborted so recently that they may still run."""

    def __init__(self) -> None:
        self._sinks: dict[str, Callable[[Event], None]] = {}
        self._aborted_at: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._sinks)

    @property
    def rids(self) -> tuple[str, ...]:
        """The open requests, then those that were aborted recently."""
        since = time.monotonic() - _ABORT_TAKES_S
        while self._aborted_at and next(iter(self._aborted_at.values())) < since:
            del self._aborted_at[next(iter(self._aborted_at))]
        return (*self._sinks, *self._aborted_at)

    def add(self, rid: str, sink: Callable[[Event], None]) -> None:
        self._sinks[rid] = sink

    def abort(self, rid: str) -> bool:
        """Deliver nothing more to the request; False if it was not open."""
        if self._sinks.pop(rid, None) is None:
            return False
        self._aborted_at[rid] = time.monotonic()
        return True

    def deliver(self, event: Event) -> None:
        """Call the sink of the event's request; a terminal event closes the request."""
        terminal = isinstance(event, Failed) or event.finished
        sink = self._sinks.pop(event.rid, None) if terminal else self._sinks.get(event.rid)
        if sink is not None:  # else it was aborted and the event crossed the abort
            sink(event)

    def close_all(self) -> dict[str, Callable[[Event], None]]:
        """Close every open request; return their sinks, which have had no terminal event."""
        sinks, self._sinks = self._sinks, {}
        return sinks

    def forget_aborted(self) -> None:
        """Forget aborted requests: their engine is gone."""
        self._aborted_at.clear()
