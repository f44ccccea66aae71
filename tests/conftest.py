"""What holds for every test: a clean environment, a loop that is never blocked, GPUs counted.

An async test with the mark `both_loops` (or in a module with `pytestmark = pytest.mark.both_loops`)
runs twice, on the plain asyncio loop and on uvloop; others run on the plain one. The environment
variable PD_EAGLE_TEST_LOOPS ("plain", "uvloop" or "plain,uvloop") says it for all. The timeout,
the markers and `filterwarnings = error` are in setup.cfg.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from typing import TYPE_CHECKING

import hypothesis
import pytest
import uvloop
from blockbuster import blockbuster_ctx

from pd_eagle.errors import PdEagleError
from pd_eagle.plan import devices
from pd_eagle.plan.setting_groups import TABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_LOOPS: Mapping[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "plain": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}
_LOOPS_FOR_ALL = "PD_EAGLE_TEST_LOOPS"

# Where the package may block the loop, and why that is right: one small folder a start, before
# and after anything is served; a few hundred bytes into an empty socket buffer.
_MAY_BLOCK = (
    ("pd_eagle/workers/run_folder.py", {"remove"}),
    ("pd_eagle/workers/worker.py", {"start"}),
)


# How long an example takes says something about the machine's other work, nothing about ours.
hypothesis.settings.register_profile("pd_eagle", deadline=None)
hypothesis.settings.load_profile("pd_eagle")


def pytest_configure() -> None:
    # Whoever runs the tests may serve something himself.
    for name in (name for row in TABLE for name in row.names):
        os.environ.pop(name, None)
    # Without bytecode every child process takes seconds more.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    if names := os.environ.get(_LOOPS_FOR_ALL):
        return {name: _LOOPS[name] for name in names.split(",")}
    if item.get_closest_marker("both_loops"):
        return _LOOPS
    return {"plain": _LOOPS["plain"]}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    wanted = [(item, mark) for item in items if (mark := item.get_closest_marker("gpu"))]
    if not wanted:
        return
    found, why = _gpus()
    for item, mark in wanted:
        if found < mark.args[0]:
            reason = f"needs {mark.args[0]} GPUs, found {found} ({why})"
            item.add_marker(pytest.mark.skip(reason=reason))


def _gpus() -> tuple[int, str]:
    try:
        inventory = devices.discover("auto", os.environ.get("CUDA_VISIBLE_DEVICES"))
    except PdEagleError as error:
        return 0, str(error)
    return len(inventory.devices), inventory.reason


@pytest.fixture(autouse=True)
def never_blocked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail an async test in which the package blocks the event loop."""
    if not inspect.iscoroutinefunction(getattr(request.node, "function", None)):
        yield
        return
    with blockbuster_ctx("pd_eagle") as blockbuster:
        for function in blockbuster.functions.values():
            for file, callers in _MAY_BLOCK:
                function.can_block_in(file, callers)
        yield
