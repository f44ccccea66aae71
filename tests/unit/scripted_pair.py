"""A prefill and a decode worker as the handoff sees them, scripted by the test itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from pd_eagle.messages import Delta, Failed
from pd_eagle.requests.router import Pair

if TYPE_CHECKING:
    from collections.abc import Callable

    from pd_eagle.messages import Event, Role, Submit
    from pd_eagle.workers.worker import Worker
    from pd_eagle.workers.worker_state import State


class Half:
    """One worker: remembers what it was told, says what the test lets it say."""

    def __init__(self, role: Role, number: int = 0, state: State = "ready") -> None:
        self.role = role
        self.name = f"{role}-{number}"
        self.state = state
        self.bootstrap_port = 9000 + number if role == "prefill" else None
        self.submitted: list[Submit] = []
        self.aborted: list[str] = []
        self._sinks: dict[str, Callable[[Event], None]] = {}

    @property
    def inflight(self) -> int:
        return len(self._sinks)

    def submit(self, submit: Submit, sink: Callable[[Event], None]) -> None:
        self.submitted.append(submit)
        self._sinks[submit.request.rid] = sink

    def abort(self, rid: str) -> None:
        self._sinks.pop(rid, None)
        self.aborted.append(rid)

    def says(self, text: str = "", *, finished: bool = False, **meta: Any) -> None:
        """Add `text` to the newest request, one token a letter."""
        rid = self.submitted[-1].request.rid
        self._say(Delta(rid, text, [ord(letter) for letter in text], meta, finished))

    def fails(self, code: str, message: str = "why") -> None:
        self._say(Failed(self.submitted[-1].request.rid, code, message))

    def _say(self, event: Event) -> None:
        if sink := self._sinks.get(event.rid):
            sink(event)
        if isinstance(event, Failed) or event.finished:
            self._sinks.pop(event.rid, None)


def worker(half: Half) -> Worker:
    return cast("Worker", half)


def pair_of(decode: Half, prefill: Half | None = None) -> Pair:
    return Pair(worker(prefill) if prefill else None, worker(decode))
