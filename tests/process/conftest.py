"""A stage for scripted workers, forked and spawned, and a look at what a test leaves behind."""

from __future__ import annotations

import asyncio
import os
import uuid
from typing import TYPE_CHECKING, cast

import pytest
import uvloop

from pd_eagle.workers import zygote
from pd_eagle.workers.launch import SpawnLauncher
from pd_eagle.workers.zygote import ZygoteLauncher
from tests import scripted
from tests.process import processes
from tests.process.stage import Journal, Stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from pd_eagle.workers.launch import Launcher


@pytest.fixture(autouse=True, scope="session")
def libuv() -> None:
    """Open the pipe that libuv keeps until the process ends, so that no test is blamed for it."""
    uvloop.new_event_loop().close()


@pytest.fixture(autouse=True)
def mark(libuv: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Mark all processes of a test; afterwards none is left, no zombie and no descriptor."""
    name = uuid.uuid4().hex
    monkeypatch.setenv(processes.MARK, name)
    before, others = processes.open_files(), processes.children()  # a shared server's, say
    yield name
    left = processes.still_alive(processes.alive_with(name), timeout_s=5)
    assert not left, f"processes are left: {left}"
    assert not processes.children() - others, "zombies are left"
    opened = {fd: what for fd, what in processes.open_files().items() if fd not in before}
    assert not opened, f"descriptors are left: {opened}"


@pytest.fixture
async def journal() -> AsyncIterator[Journal]:
    journal = Journal()
    journal.attach()
    yield journal
    journal.detach()


async def forking_launcher(step: str = scripted.PRELOAD) -> ZygoteLauncher:
    launcher = ZygoteLauncher(await asyncio.to_thread(zygote.spawn, os.environ, None, step))
    await launcher.ready()
    return launcher


@pytest.fixture(params=["forked", "spawned"])
async def launcher(request: pytest.FixtureRequest) -> AsyncIterator[Launcher]:
    """Both ways to start a worker."""
    how = cast("str", request.param)
    launcher: Launcher
    launcher = await forking_launcher() if how == "forked" else SpawnLauncher(os.environ)
    yield launcher
    await launcher.close()


@pytest.fixture
async def stage(launcher: Launcher, tmp_path: Path, journal: Journal) -> AsyncIterator[Stage]:
    """A stage on which every worker is started in both ways."""
    stage = Stage(launcher, tmp_path, journal)
    yield stage
    await stage.close()


@pytest.fixture
async def forked(tmp_path: Path, journal: Journal) -> AsyncIterator[Stage]:
    """A stage with a zygote, for what does not depend on how a worker was started."""
    launcher = await forking_launcher()
    stage = Stage(launcher, tmp_path, journal)
    yield stage
    await stage.close()
    await launcher.close()
