"""Bootstrap ports: each prefill worker gets its own, and another one for every start.

SGLang binds the port seconds after it was chosen. If another process has bound it by then, SGLang
only logs that and reports ready, and its peers connect to the other process (0.5.23). So a port is
also reserved among all services of this machine. It knows only the names of workers.
"""

from __future__ import annotations

import itertools
import socket
from typing import TYPE_CHECKING

from pd_eagle.errors import StartFailed
from pd_eagle.plan.engine_settings import DEFAULT_BOOTSTRAP_PORT
from pd_eagle.workers.fork_safety import private_socket

if TYPE_CHECKING:
    from collections.abc import Sequence


class BootstrapPorts:
    """The ports of one plan: `asked` (DISAGG_BOOTSTRAP_PORT) or 8998, then the next free ones."""

    def __init__(self, asked: int | None, names: Sequence[str]) -> None:
        """Reserve a port for each of `names`.

        Raises `StartFailed` when `asked` is taken, or no port is left.
        """
        self._range = range(asked or DEFAULT_BOOTSTRAP_PORT, 2**16)
        self._turn = itertools.cycle(self._range)
        self._held: dict[str, tuple[int, socket.socket]] = {}
        self._unused: dict[str, int] = {}
        try:
            for name in names:
                self._unused[name] = self._take_next(name)
            if names and asked is not None and self._unused[names[0]] != asked:
                raise StartFailed(
                    f"DISAGG_BOOTSTRAP_PORT={asked}: wanted a free port, somebody uses it"
                )
        except StartFailed:
            self.release()
            raise

    def take(self, name: str) -> int:
        """Return the port for the next start of `name`; each start gets another.

        Decode engines notice only after seconds that an old port's owner is gone (SGLang 0.5.23).
        """
        return self._unused.pop(name, None) or self._take_next(name)

    def release(self) -> None:
        for _, reservation in self._held.values():
            reservation.close()
        self._held.clear()

    def _take_next(self, name: str) -> int:
        for port in itertools.islice(self._turn, len(self._range)):
            if not _is_free(port) or (reservation := _reserve(port)) is None:
                continue
            if old := self._held.pop(name, None):
                old[1].close()
            self._held[name] = (port, reservation)
            return port
        raise StartFailed(
            f"no free port from DISAGG_BOOTSTRAP_PORT={self._range.start} to "
            f"{self._range.stop - 1} is left for {name}"
        )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _reserve(port: int) -> socket.socket | None:
    """Return what keeps `port` from other services of ours; None if one of them has it.

    A name in Linux's abstract namespace: it is gone with the process, whatever way that ends.
    """
    reservation = private_socket(socket.AF_UNIX)
    try:
        reservation.bind(f"\0pd_eagle-bootstrap-{port}")
    except OSError:
        reservation.close()
        return None
    return reservation
