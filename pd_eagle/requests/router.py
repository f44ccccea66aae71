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
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from pd_eagle.messages import Role
    from pd_eagle.workers.worker import Worker

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

    @property
    def workers(self) -> tuple[Worker, ...]:
        return (self.prefill, self.decode) if self.prefill else (self.decode,)

    def has(self, name: str) -> bool:
        return any(worker.name == name for worker in self.workers)

    def open_room(self) -> Bootstrap | None:
        """Return a new room at the prefill worker, which must be the one that gets the request."""
        if self.prefill is None or self.prefill.bootstrap_port is None:
            return None
        room = secrets.randbits(_ROOM_BITS)
        return Bootstrap(_BOOTSTRAP_HOST, self.prefill.bootstrap_port, room)


class Router:
    """Hands out pairs in turn, none whose link has been marked as broken."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._broken: set[str] = set()
        self._workers = workers
        self._turns: dict[Role, Iterator[int]] = {
            role: itertools.count() for role in ("prefill", "decode", "unified")
        }

    def pick(self, tried: Collection[str] = (), without: Collection[str] = ()) -> Pair:
        """Return the next pair; one of `tried` only if there is no other, never one that has a
        worker of `without`.

        Raises `NotServing` when a role has no ready worker, or no link works.
        """
        pairs = [
            pair
            for pair in self.working_pairs()
            if not any(worker.name in without for worker in pair.workers)
        ]
        if not pairs:
            raise NotServing("no prefill worker and decode worker are ready that reach each other")
        fresh = [pair for pair in pairs if pair.name not in tried] or pairs
        if fresh[0].prefill is None:
            return self._take_turn("unified", fresh)
        return self._take_turn("prefill", self._same_decode(fresh))

    def pick_apart(
        self, names: Iterable[str], may_join: Callable[[Collection[str]], bool]
    ) -> tuple[Pair, str]:
        """Return a pair, and the first worker of `names` in it: of which `may_join` says, by the
        rids of the requests in it, that it may get another.

        Raises `NotServing` when there is none that is ready and has a working link.
        """
        pairs = self.working_pairs()
        for name in names:
            for pair in pairs:
                if any(w.name == name and may_join(w.rids) for w in pair.workers):
                    return pair, name
        raise NotServing("no worker is free of other requests")

    # --- links

    @property
    def broken(self) -> AbstractSet[str]:
        """The names of pairs whose link does not work."""
        return self._broken

    def mark_broken(self, *names: str) -> None:
        self._broken.update(names)

    def mark_working(self, *names: str) -> None:
        self._broken.difference_update(names)

    def working_pairs(self) -> list[Pair]:
        """Return every pair of ready workers whose link is not known to be broken."""
        return [pair for pair in self.all_pairs() if pair.name not in self._broken]

    def all_pairs(self) -> list[Pair]:
        """Return every pair of ready workers, those with a broken link too."""
        return [Pair(None, worker) for worker in self._ready("unified")] + [
            Pair(prefill, decode)
            for prefill in self._ready("prefill")
            for decode in self._ready("decode")
        ]

    def _same_decode(self, pairs: list[Pair]) -> list[Pair]:
        decode = self._take_turn("decode", list({p.decode.name: p for p in pairs}.values())).decode
        return [pair for pair in pairs if pair.decode is decode]

    def _take_turn(self, role: Role, pairs: list[Pair]) -> Pair:
        return pairs[next(self._turns[role]) % len(pairs)]

    def _ready(self, role: Role) -> list[Worker]:
        return [w for w in self._workers if w.role == role and w.state == "ready"]
