"""Which pair serves a request: round robin over the ready workers of each role.

It knows workers only by role and state; it does not know requests.
"""

from __future__ import annotations

import itertools
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pd_eagle.errors import NotServing
from pd_eagle.messages import Bootstrap

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pd_eagle.messages import Role
    from pd_eagle.worker import Worker

# SGLang carries the room as a signed 64-bit integer.
_ROOM_BITS = 63
# SGLang binds its KV sockets to the host's own addresses, and its bootstrap server to every one.
_BOOTSTRAP_HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Pair:
    """The workers that serve one request; in unified mode `prefill` is None."""

    prefill: Worker | None
    decode: Worker

    @property
    def name(self) -> str:
        return f"{self.prefill.name}+{self.decode.name}" if self.prefill else self.decode.name

    def open_room(self) -> Bootstrap | None:
        """Return a new room at the prefill worker, which must be the one that gets the request."""
        if self.prefill is None or self.prefill.bootstrap_port is None:
            return None
        room = secrets.randbits(_ROOM_BITS)
        return Bootstrap(_BOOTSTRAP_HOST, self.prefill.bootstrap_port, room)


class Router:
    """Hands out pairs in turn."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers
        self._turns: dict[Role, Iterator[int]] = {
            role: itertools.count() for role in ("prefill", "decode", "unified")
        }

    def pick(self) -> Pair:
        """Return the next pair. Raises `NotServing` when a role has no ready worker."""
        if any(worker.role == "unified" for worker in self._workers):
            return Pair(None, self._next("unified"))
        return Pair(self._next("prefill"), self._next("decode"))

    def all_pairs(self) -> list[Pair]:
        """Return every pair of ready workers."""
        serving = self._ready("unified")
        return [Pair(None, worker) for worker in serving] + [
            Pair(prefill, decode)
            for prefill in self._ready("prefill")
            for decode in self._ready("decode")
        ]

    def _next(self, role: Role) -> Worker:
        ready = self._ready(role)
        if not ready:
            raise NotServing(f"no {role} worker is ready")
        return ready[next(self._turns[role]) % len(ready)]

    def _ready(self, role: Role) -> list[Worker]:
        return [w for w in self._workers if w.role == role and w.state == "ready"]
