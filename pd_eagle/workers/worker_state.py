"""The states of a worker, and from which it may go to which."""

from __future__ import annotations

from typing import Literal

State = Literal["starting", "ready", "suspect", "restarting", "stopping", "failed"]

#: Any other transition is a defect and raises.
TRANSITIONS: dict[State, frozenset[State]] = {
    "starting": frozenset({"ready", "failed", "stopping"}),
    "ready": frozenset({"suspect", "restarting", "stopping", "failed"}),
    "suspect": frozenset({"ready", "restarting", "stopping", "failed"}),
    "restarting": frozenset({"ready", "failed", "stopping"}),
    "stopping": frozenset({"failed"}),
    "failed": frozenset({"restarting", "stopping"}),
}
