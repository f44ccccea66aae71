"""Real engines, shared by the tests of a module: a start costs seconds, and an engine gigabytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engine.serving import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

# An engine's start on a machine with a busy loop on each core, and what a test then asks of it.
ENGINE_TEST_TIMEOUT_S = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/engine" in str(item.path) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(ENGINE_TEST_TIMEOUT_S))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The embedded model, 1 prefill and 1 decode worker, all settings at their defaults."""
    with ServerProcess(tmp_path_factory.mktemp("server") / "server.log") as running:
        yield running
