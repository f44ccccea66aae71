"""How many drafted tokens the target model accepted; knows of SGLang only its `meta_info`."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class Acceptance:
    """Acceptance of the last requests that finished; None before the first.

    SGLang's own snapshot has it as a mean since the start, and only after 40 steps (0.5.23).
    """

    _REQUESTS = 100

    def __init__(self) -> None:
        self._counts: deque[tuple[int, int, int]] = deque(maxlen=self._REQUESTS)

    def note(self, meta: Mapping[str, Any]) -> None:
        """Count a request by its last `meta_info`; one without a verification does not count."""
        if verified := meta.get("spec_verify_ct"):
            accepted, drafted = meta["spec_num_correct_drafts"], meta["spec_num_proposed_drafts"]
            self._counts.append((verified, accepted, drafted))

    @property
    def length(self) -> float | None:
        """Tokens per verification, the target's own one included."""
        verified, accepted, _ = self._sums()
        return 1 + accepted / verified if verified else None

    @property
    def rate(self) -> float | None:
        """Share of the drafted tokens that were accepted."""
        _, accepted, drafted = self._sums()
        return accepted / drafted if drafted else None

    def _sums(self) -> tuple[int, int, int]:
        return (
            sum(count[0] for count in self._counts),
            sum(count[1] for count in self._counts),
            sum(count[2] for count in self._counts),
        )
