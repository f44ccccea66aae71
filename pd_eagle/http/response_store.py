"""The stored responses of the Responses API, within a limit of memory.

It does not know who asks for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable

_RUNNING = ("queued", "in_progress")


class ResponseStore(dict[str, Any]):
    """What conversations are continued with: the oldest go where all would be too large.

    SGLang's class keeps responses and their messages in two dictionaries: this is the first of
    them, `messages` the second. Responses that still run are kept.
    """

    def __init__(self, most_bytes: int) -> None:
        super().__init__()
        self.messages: dict[str, Any] = _Messages(self._count)
        self.held_bytes = 0
        self._most_bytes = most_bytes
        self._sizes: dict[str, int] = {}  # the oldest first

    def __setitem__(self, response_id: str, response: Any) -> None:
        super().__setitem__(response_id, response)
        self._count(response_id)

    def _count(self, response_id: str) -> None:
        """Count a response and its messages as they are now; let the oldest go."""
        kept = [self.messages.get(response_id), self.get(response_id)]
        size = len(orjson.dumps(kept, default=_as_json))
        self.held_bytes += size - self._sizes.get(response_id, 0)
        self._sizes[response_id] = size
        for oldest in list(self._sizes):
            if self.held_bytes <= self._most_bytes:
                break
            if oldest not in self or self[oldest].status not in _RUNNING:
                self._forget(oldest)

    def _forget(self, response_id: str) -> None:
        self.pop(response_id, None)
        self.messages.pop(response_id, None)
        self.held_bytes -= self._sizes.pop(response_id)


class _Messages(dict[str, Any]):
    def __init__(self, count: Callable[[str], None]) -> None:
        super().__init__()
        self._count = count

    def __setitem__(self, response_id: str, messages: Any) -> None:
        super().__setitem__(response_id, messages)
        self._count(response_id)


def _as_json(value: Any) -> Any:
    return value.model_dump()
