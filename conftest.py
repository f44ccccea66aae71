"""What this machine lacks, as a reason to skip: Mooncake's libraries are Debian's, not pip's."""

from __future__ import annotations

import pytest

from pd_eagle import doctor


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    over_mooncake = [
        item
        for item in items
        if item.nodeid.startswith("tests/engine/") and "mooncake" in item.nodeid
    ]
    if over_mooncake and (reason := _why_no_mooncake()):
        for item in over_mooncake:
            item.add_marker(pytest.mark.skip(reason=reason))


def _why_no_mooncake() -> str | None:
    findings = [found for found in doctor.examine({}) if found.what.startswith("mooncake")]
    lacking = next((found for found in findings if not found.ok), None)
    return f"{lacking.what}: {lacking.detail}" if lacking else None
