"""What holds for a whole run: what is skipped on this machine, and what is printed at the end.

Mooncake's libraries are Debian's, not pip's.
"""

from __future__ import annotations

from typing import Any

import pytest

from pd_eagle.plan import doctor


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    over_mooncake = [
        item
        for item in items
        if item.nodeid.startswith("tests/engine/") and "mooncake" in item.nodeid
    ]
    if over_mooncake and (reason := _why_no_mooncake()):
        for item in over_mooncake:
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what tests have noted with `record_property("seen", …)`."""
    seen = [
        value
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == "seen"
    ]
    if seen:
        terminalreporter.section("seen")
        for line in seen:
            terminalreporter.line(line)


def _why_no_mooncake() -> str | None:
    findings = [found for found in doctor.examine({}) if found.what.startswith("mooncake")]
    lacking = next((found for found in findings if not found.ok), None)
    return f"{lacking.what}: {lacking.detail}" if lacking else None
