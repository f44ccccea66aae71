"""Requests that somebody else than their reader may end early, by name.

It does not know how a request is ended.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

#: SGLang 0.5.23 says so of a request that `abort_request` has ended.
FINISH_REASON: dict[str, Any] = {"type": "abort", "message": "Aborted by AbortReq."}


class Aborts:
    """Open requests by rid; each has a future that is done once it is to end."""

    def __init__(self) -> None:
        self._open: dict[str, asyncio.Future[None]] = {}

    @contextlib.contextmanager
    def listening(self, rid: str) -> Iterator[asyncio.Future[None]]:
        """Give what `abort(rid)` makes done, as long as the block lasts."""
        cut = self._open[rid] = asyncio.get_running_loop().create_future()
        try:
            yield cut
        finally:
            del self._open[rid]

    def abort(self, rid: str) -> None:
        """End the request `rid`, if it is open; one that waits for its turn ends when it comes."""
        if (cut := self._open.get(rid)) and not cut.done():
            cut.set_result(None)
