"""A front to be killed: `python -m tests.process.front_to_kill {forked|spawned} PHASE FOLDER`.

It says "there" on standard output once it has reached the phase, and stays in it. The pids after it
are of processes that are too young to show their environment.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from pd_eagle.workers import zygote
from pd_eagle.workers.launch import SpawnLauncher
from pd_eagle.workers.zygote import ZygoteLauncher
from tests import scripted
from tests.process.stage import Journal, Stage, request
from tests.scripted import Act, Script


def there(*pids: int) -> None:
    sys.stdout.write(" ".join(["there", *map(str, pids)]) + "\n")
    sys.stdout.flush()


async def _importing(folder: Path) -> None:
    sign = folder / "sign"
    os.mkfifo(sign)
    preparing = zygote.spawn(os.environ, str(sign), scripted.PRELOAD_FOR_EVER)
    sign.read_text()
    there()
    await asyncio.Event().wait()
    del preparing


async def _main(how: str, phase: str, folder: Path) -> None:
    if phase == "importing":
        await _importing(folder)
    launcher: SpawnLauncher | ZygoteLauncher = SpawnLauncher(os.environ)
    if how == "forked":
        launcher = ZygoteLauncher(zygote.spawn(os.environ, None, scripted.PRELOAD))
        await launcher.ready()
    if phase == "launched":
        kept = [await launcher.launch() for _ in range(3)]
        there(*(process.pid for process in kept))
        await asyncio.Event().wait()
    journal = Journal()
    journal.attach()
    stage = Stage(launcher, folder, journal)
    service = stage.new_service("prefill", "decode", "decode")
    script = Script(schedulers=1, start="hang" if phase == "starting" else "ready")
    streaming = Script(schedulers=1, acts={"s": Act(pause_s=0.01)})
    starting = asyncio.create_task(
        stage.start_service(
            service, {"prefill-0": streaming, "decode-0": streaming, "decode-1": script}
        )
    )
    if phase == "starting":
        await journal.line("starting for ever")
        there()
    await starting
    if phase == "streaming":
        streams = [service.stream(request("s", 900)) for _ in range(4)]
        for stream in streams:
            await anext(stream)
    there()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
