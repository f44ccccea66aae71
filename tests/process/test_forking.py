"""What is spawned because it cannot be forked, and that it is said."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from pd_eagle.requests.health import WorkerHealth
from pd_eagle.workers import zygote
from pd_eagle.workers.fork_launcher import ForkLauncher
from pd_eagle.workers.launch import SpawnLauncher
from pd_eagle.workers.zygote import ZygoteLauncher
from tests import scripted
from tests.process.stage import ONE_TRY, Stage, request
from tests.scripted import Script, answer_to

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pd_eagle.requests.service import Service
    from tests.process.stage import Journal

#: What torch says in a child whose parent had initialised CUDA.
FORK_FAULT = "RuntimeError: Cannot re-initialize CUDA in forked subprocess. To use CUDA with …"


async def lasting(step: str) -> ForkLauncher:
    process = await asyncio.to_thread(zygote.spawn, os.environ, None, step)
    launcher = ZygoteLauncher(process)
    await launcher.ready()
    again = lambda: zygote.spawn(os.environ, None, step)  # noqa: E731
    return ForkLauncher(launcher, again, SpawnLauncher(os.environ))


@pytest.fixture
async def lasting_stage(tmp_path: Path, journal: Journal) -> AsyncIterator[Stage]:
    launcher = await lasting(scripted.PRELOAD)
    stage = Stage(launcher, tmp_path, journal)
    yield stage
    await stage.close()
    await launcher.close()


def spawned_because(service: Service) -> list[str | None]:
    return [WorkerHealth.of(worker).spawned_because for worker in service.workers]


async def test_a_worker_that_was_forked_says_so(lasting_stage: Stage) -> None:
    service = await lasting_stage.service("prefill", "decode")
    assert spawned_because(service) == [None, None]


async def test_a_worker_is_spawned_where_the_zygote_refuses(
    tmp_path: Path, journal: Journal
) -> None:
    launcher = await lasting(scripted.PRELOAD_WITH_THREAD)
    stage = Stage(launcher, tmp_path, journal)
    worker = await stage.worker()
    why = worker.spawned_because
    assert why is not None
    assert why.startswith("the zygote may not fork: 2 threads run in it")
    assert f"a worker is spawned, not forked: {why}" in journal.lines
    assert (await stage.submit(worker, request("x", 1)).delta()).text == answer_to("x", 1)
    await stage.close()
    await launcher.close()


async def test_a_forked_engine_that_cannot_use_cuda_is_spawned_in_the_same_start(
    lasting_stage: Stage,
) -> None:
    failing = Script(start="raise", last_words=[FORK_FAULT])
    service = await lasting_stage.service(
        "prefill", "decode", scripts={"decode-0": [failing, Script()]}
    )
    assert service.status == "ready"
    because = spawned_because(service)[1]
    assert because is not None
    assert because.startswith("a forked engine failed: decode-0 could not start: ")
    await lasting_stage.journal.line("workers are spawned from now on: a forked engine failed")


async def test_the_next_worker_is_spawned_at_once_after_that(lasting_stage: Stage) -> None:
    failing = Script(start="raise", last_words=[FORK_FAULT])
    service = await lasting_stage.service("unified", scripts={"unified-0": [failing, Script()]})
    other = await lasting_stage.worker(name="unified-1")
    assert other.spawned_because == spawned_because(service)[0]
    assert not lasting_stage.launcher.stop_forking(FORK_FAULT)  # there is no third way


async def test_another_failure_is_no_reason_to_spawn(lasting_stage: Stage) -> None:
    service = lasting_stage.new_service("unified", policy=ONE_TRY)
    failing = Script(start="raise", last_words=["torch.OutOfMemoryError: CUDA out of memory"])
    with pytest.raises(Exception, match="unified-0 could not start"):
        await lasting_stage.start_service(service, {"unified-0": [failing, Script()]})
    assert (await lasting_stage.worker(name="unified-1")).spawned_because is None
