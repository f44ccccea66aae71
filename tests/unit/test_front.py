"""What the front says of itself; the rest of it is in tests/process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from pd_eagle.front import Front

if TYPE_CHECKING:
    from pd_eagle.requests.fleet import Status


@pytest.mark.parametrize(
    ("engines", "status"),
    [
        ("ready", "starting"),
        ("degraded", "starting"),
        ("starting", "starting"),
        ("draining", "draining"),
        ("failed", "failed"),
    ],
)
def test_it_is_not_ready_before_it_can_answer(engines: Status, status: Status) -> None:
    front: Any = SimpleNamespace(service=SimpleNamespace(status=engines), api=None)
    assert Front.status.fget(front) == status  # type: ignore[attr-defined]
    front.api = object()
    assert Front.status.fget(front) == engines  # type: ignore[attr-defined]
