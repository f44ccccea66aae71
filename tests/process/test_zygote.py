"""The zygote: what it refuses, what it survives, what its death means."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from asyncio import create_task
from functools import partial
from pathlib import Path

import msgspec
import pytest

from pd_eagle.errors import StartFailed
from pd_eagle.workers import zygote
from pd_eagle.workers.fork_launcher import ForkLauncher
from pd_eagle.workers.launch import SpawnLauncher
from pd_eagle.workers.zygote import ForkRefused, ZygoteLauncher, ZygoteProcess
from pd_eagle.workers.zygote_main import Exited, Forked, FromZygote, Imported
from tests import scripted
from tests.process import processes
from tests.process.stage import Stage, request
from tests.scripted import Script, answer_to


async def spawn(step: str = scripted.PRELOAD) -> ZygoteProcess:
    return await asyncio.to_thread(zygote.spawn, os.environ, "", step)


def pid_of(stage: Stage) -> int:
    assert isinstance(stage.launcher, ZygoteLauncher)
    return stage.launcher._process.pid


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


async def asked() -> None:
    """Let a launch come as far as its request to the zygote."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_it_refuses_to_fork_while_a_thread_runs() -> None:
    launcher = ZygoteLauncher(await spawn(scripted.PRELOAD_WITH_THREAD))
    said = await launcher.ready()
    assert said is not None
    assert said.startswith("2 threads run in it: its own, ")
    with pytest.raises(ForkRefused, match="the zygote may not fork: 2 threads run in it"):
        await launcher.launch()
    await launcher.close()


def test_a_process_with_threads_is_not_forked() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        with pytest.raises(
            ForkRefused, match=r"cannot be forked from this process: \d+ threads run"
        ):
            zygote.fork_from_here(None, scripted.PRELOAD)
    finally:
        stop.set()
        thread.join()


FORK_HERE = """
import os
from pd_eagle.workers import zygote
from tests import scripted
process = zygote.fork_from_here(None, scripted.PRELOAD)
assert b"imported" in process.answers.recv(4096)
assert os.getsid(process.pid) == process.pid != os.getsid(0)
for end in (process.requests, process.answers, process.lifeline):
    end.close()
os.waitpid(process.pid, 0)
"""


def test_a_zygote_forked_from_here_leads_a_session_and_ends_with_its_sockets() -> None:
    subprocess.run([sys.executable, "-c", FORK_HERE], check=True, timeout=10)


def test_a_process_in_which_cuda_runs_is_not_forked() -> None:
    code = """
import sys, types
from pd_eagle.workers.fork_check import why_not_fork
assert why_not_fork() is None
running = True
sys.modules["torch"] = types.SimpleNamespace(
    cuda=types.SimpleNamespace(is_initialized=lambda: running)
)
assert why_not_fork() == "CUDA is initialised in it"
running = False
assert why_not_fork() is None
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=10)


async def test_it_says_when_it_cannot_be_prepared(capfd: pytest.CaptureFixture[str]) -> None:
    launcher = ZygoteLauncher(await spawn(scripted.PRELOAD_FAILS))
    with pytest.raises(StartFailed, match="the zygote died"):
        await launcher.ready()
    assert "ImportError: the script says that something is not installed" in capfd.readouterr().err
    with pytest.raises(StartFailed, match="the zygote is gone"):
        await launcher.launch()
    await launcher.close()


async def test_it_can_be_ended_while_it_is_prepared(tmp_path: Path) -> None:
    launcher = ZygoteLauncher(await spawn(scripted.PRELOAD_FOR_EVER))
    waiting = create_task(launcher.ready())
    await asyncio.sleep(0)
    await launcher.close()
    with pytest.raises(StartFailed, match="the zygote died"):
        await waiting


async def test_it_can_be_ended_before_anybody_waits_for_it() -> None:
    launcher = ZygoteLauncher(await spawn(scripted.PRELOAD_FOR_EVER))
    await launcher.close()


async def test_workers_serve_on_when_it_has_died(forked: Stage) -> None:
    worker = await forked.worker()
    os.kill(pid_of(forked), signal.SIGKILL)
    with pytest.raises(StartFailed, match="the zygote"):
        await forked.worker(name="unified-1")
    delta = await forked.submit(worker, request("x", 1)).delta()
    assert delta.text == answer_to("x", 1)
    pid = worker.pid
    async with asyncio.timeout(2):  # although nobody says with which code it ended
        await worker.stop()
    assert not processes.still_alive([pid or 0], timeout_s=0)


async def test_its_death_ends_a_launch_that_waits_for_it(forked: Stage) -> None:
    os.kill(pid_of(forked), signal.SIGSTOP)
    launch = create_task(forked.launcher.launch())
    await asked()
    os.kill(pid_of(forked), signal.SIGKILL)
    with pytest.raises(StartFailed, match="the zygote died"):
        await launch


async def test_a_launch_that_is_cancelled_leaves_no_process(forked: Stage) -> None:
    os.kill(pid_of(forked), signal.SIGSTOP)
    launch = create_task(forked.launcher.launch())
    await asked()
    launch.cancel()
    os.kill(pid_of(forked), signal.SIGCONT)
    with pytest.raises(asyncio.CancelledError):
        await launch
    assert not processes.still_alive(map(int, children_of(pid_of(forked))), timeout_s=2)
    worker = await forked.worker()  # the zygote is as good as before
    assert children_of(pid_of(forked)) == [str(worker.pid)]


async def test_it_reaps_what_a_killed_worker_leaves(forked: Stage) -> None:
    worker = await forked.worker(Script(schedulers=2))
    assert worker.info is not None
    os.kill(worker.pid or 0, signal.SIGKILL)
    assert await forked.deaths.get() == ("unified-0", "its process ended")
    assert not processes.still_alive(worker.info.scheduler_pids, timeout_s=2)
    other = await forked.worker(name="unified-1")  # a round trip: what has ended was reaped
    assert children_of(pid_of(forked)) == [str(other.pid)]


async def test_a_forked_worker_holds_nothing_of_the_zygote(forked: Stage) -> None:
    worker = await forked.worker()
    other = await forked.worker(name="unified-1")
    assert {_kind(what) for what in _open_files(worker.pid)} == {
        "/dev/null",
        "pipe",  # its output
        "socket",  # data, lifeline, and its loop's own pair
        "anon_inode",
    }
    shared = _open_files(worker.pid) & _open_files(other.pid)
    assert not {what for what in shared if _kind(what) != "anon_inode"} - {"/dev/null"}


def _kind(what: str) -> str:
    return what.partition(":")[0]


def _open_files(pid: int | None) -> set[str]:
    return {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}


async def test_an_exit_may_be_told_before_its_fork() -> None:
    """The zygote reaps before it answers when a worker ends at once."""
    requests, its_requests = socket.socketpair()
    answers, its_answers = socket.socketpair()
    lifeline, its_lifeline = socket.socketpair()
    pid = 2**22 + 1  # above what Linux gives out: nobody's
    launcher = ZygoteLauncher(ZygoteProcess(pid, requests, answers, lifeline))
    said: list[FromZygote] = [Imported(None), Exited(pid, 7 << 8), Forked(pid)]
    for message in said:
        body = msgspec.msgpack.encode([message])
        its_answers.sendall(struct.pack("!I", len(body)) + body)
    launching = create_task(launcher.launch())
    await asked()  # the launch asks, and then hears of the exit first
    assert await launcher.ready() is None
    process = await launching
    await asyncio.wait_for(process.exited.wait(), 5)
    assert process.describe_exit() == "exited with code 7"
    launcher._channel.close()
    await asked()
    for end in (requests, its_requests, answers, its_answers, lifeline, its_lifeline):
        end.close()
    for end in (process.data, process.lifeline):
        end.close()
    os.close(process.output_fd)


async def test_a_child_that_cannot_become_a_worker_is_no_second_zygote() -> None:
    launcher = ZygoteLauncher(await spawn(scripted.PRELOAD_BREAKS_WORKERS))
    await launcher.ready()
    for _ in range(2):
        process = await launcher.launch()
        await process.exited.wait()
        assert process.describe_exit() == "exited with code 1"
        process.discard()
    await launcher.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zygote, "_FORK_TIMEOUT_S", 0.3)
    monkeypatch.setattr(zygote, "_CLOSE_TIMEOUT_S", 0.3)


async def test_one_that_hangs_is_killed_and_its_workers_live_on(
    forked: Stage, impatient: None
) -> None:
    worker = await forked.worker()
    os.kill(pid_of(forked), signal.SIGSTOP)
    with pytest.raises(StartFailed, match=r"the zygote hangs: no fork within 0\.3 s"):
        await forked.worker(name="unified-1")
    assert not processes.still_alive([pid_of(forked)], timeout_s=2)
    with pytest.raises(StartFailed, match="the zygote is gone"):
        await forked.worker(name="unified-2")
    delta = await forked.submit(worker, request("x", 1)).delta()
    assert delta.text == answer_to("x", 1)


async def test_one_that_hangs_is_replaced(impatient: None) -> None:
    first = ZygoteLauncher(await spawn())
    await first.ready()
    again = partial(zygote.spawn, os.environ, None, scripted.PRELOAD)
    launcher = ForkLauncher(first, again, SpawnLauncher(os.environ))
    os.kill(first._process.pid, signal.SIGSTOP)
    with pytest.raises(StartFailed, match="the zygote hangs"):
        await launcher.launch()
    process = await launcher.launch()
    process.discard()
    await launcher.close()


async def test_one_whose_imports_hang_is_killed() -> None:
    launcher = ZygoteLauncher(await spawn(scripted.PRELOAD_FOR_EVER), 0.5)
    with pytest.raises(StartFailed, match=r"no imports within 0\.5 s \(START_TIMEOUT_S\)"):
        await launcher.ready()
    assert not processes.still_alive([launcher._process.pid], timeout_s=2)
    await launcher.close()


async def test_one_that_hangs_does_not_keep_its_close(impatient: None) -> None:
    launcher = ZygoteLauncher(await spawn())
    await launcher.ready()
    os.kill(launcher._process.pid, signal.SIGSTOP)
    await launcher.close()


def stopped_before_its_first_line() -> ZygoteProcess:
    """Return a zygote that has not yet tied its life to the front's, and never will."""
    process = subprocess.Popen(["sleep", "300"])
    os.kill(process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    process.returncode = 0  # the zygote's owner reaps it
    ends = [socket.socketpair() for _ in range(3)]
    for _, far in ends:
        far.close()
    return ZygoteProcess(process.pid, *(near for near, _ in ends))


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_one_that_stops_before_its_first_line_is_discarded() -> None:
    found = stopped_before_its_first_line()
    found.discard()
    assert not exists(found.pid)


async def test_one_that_stops_before_its_first_line_is_closed() -> None:
    found = stopped_before_its_first_line()
    launcher = ZygoteLauncher(found)
    await launcher.close()
    await launcher.close()
    assert not exists(found.pid)
