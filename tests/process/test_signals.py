"""Signals that ask the server to stop, whoever gets them: streams, exit codes, what is left."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pd_eagle import serve
from tests import scripted
from tests.process import processes
from tests.process.scripted_server import Server
from tests.scripted import Act, Script, answer_to

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

STREAMS = 4
TOKENS = 60
SLOW = Script(acts={"s": Act(pause_s=0.02)}, schedulers=1, shared_memory=True)
HANGS = Script(acts={"h": Act("hang", after=2)}, schedulers=1, shared_memory=True)
IDLE = Script(schedulers=1, shared_memory=True)


@pytest.fixture
def temp_dir(mark: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of all temporary files; nothing is left there, nor in shared memory."""
    with tempfile.TemporaryDirectory(prefix="t-") as folder:  # short: sockets are made in it
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)
        assert names_in(Path(folder)) == set()
    assert shared_memory(mark) == set()


def shared_memory(mark: str) -> set[str]:
    return {file.name for file in Path("/dev/shm").glob(f"sglang_loads_pd_eagle-run-*_{mark}.shm")}


@pytest.fixture(autouse=True)
def no_signal_is_ignored() -> Iterator[None]:
    """Under `nohup` SIGHUP is: servers would inherit that, and rightly go on."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(autouse=True, params=["uvloop", "asyncio"])
def loop_of_the_server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both event loops."""
    monkeypatch.setenv("EVENT_LOOP", request.param)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def send_to_all(mark: str, number: signal.Signals) -> None:
    """Do what systemd does: the signal goes to every process of the tree."""
    for pid in processes.alive_with(mark):
        os.kill(pid, number)


async def text_of(server: Server, prompt: str) -> tuple[str, Any]:
    async with server.stream(prompt, max_tokens=TOKENS) as events:
        got = [event async for event in events]
    return "".join(event["text"] for event in got[:-1]), got[-1]


async def begun(server: Server, prompts: list[str], stack: AsyncExitStack) -> list[Any]:
    """Return streams of `prompts`, each of which has given its first event."""
    streams = [await stack.enter_async_context(server.stream(p, TOKENS)) for p in prompts]
    for stream in streams:
        await anext(stream)
    return streams


async def rest(events: AsyncIterator[Any]) -> list[Any]:
    return [event async for event in events]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("to", ["front", "all"])
async def test_streams_end_whole_whoever_got_the_signal(
    tmp_path: Path, temp_dir: Path, mark: str, number: signal.Signals, to: str
) -> None:
    prompts = [f"s{n}" for n in range(STREAMS)]
    async with Server(tmp_path, IDLE, SLOW) as server, AsyncExitStack() as stack:
        await server.ready()
        streams = await begun(server, prompts, stack)
        if to == "all":
            assert len(processes.alive_with(mark)) == 6  # front, zygote, 2 workers, 2 schedulers
            send_to_all(mark, number)
        else:
            server.send(number)
        await server.line("stopping: running requests have 30 s")
        for prompt, stream in zip(prompts, streams, strict=True):
            events = await rest(stream)
            assert events[-1] == "[DONE]"
            assert "".join(e["text"] for e in events[:-1]) == answer_to(prompt, TOKENS)[1:]
        assert await server.exit_code() == serve.EXIT_OK
    assert "Traceback" not in server.log


async def test_signals_that_come_together_are_one(tmp_path: Path, temp_dir: Path) -> None:
    """As `timeout` sends them: to the process, and at once to its group."""
    async with Server(tmp_path, IDLE, SLOW) as server, AsyncExitStack() as stack:
        await server.ready()
        (stream,) = await begun(server, ["s"], stack)
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
            server.send(number)
            await asyncio.sleep(0.01)
        assert (await rest(stream))[-1] == "[DONE]"
        assert await server.exit_code() == serve.EXIT_OK
    assert "second signal" not in server.log


async def test_a_second_signal_to_all_cuts_streams_with_an_error(
    tmp_path: Path, temp_dir: Path, mark: str
) -> None:
    async with Server(tmp_path, IDLE, HANGS) as server, AsyncExitStack() as stack:
        await server.ready()
        (stream,) = await begun(server, ["h"], stack)
        send_to_all(mark, signal.SIGTERM)
        await server.line("stopping: running requests")
        send_to_all(mark, signal.SIGHUP)
        *_, error, done = await rest(stream)
        assert (error["error"]["code"], done) == ("not_serving", "[DONE]")
        assert await server.exit_code() == serve.EXIT_CUT_OFF


async def test_who_is_to_survive_the_terminal_does(
    tmp_path: Path, temp_dir: Path, mark: str
) -> None:
    """As nohup starts it: with SIGHUP ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        server = await Server(tmp_path, IDLE, IDLE).__aenter__()
    finally:
        signal.signal(signal.SIGHUP, before)
    try:
        await server.ready()
        send_to_all(mark, signal.SIGHUP)
        assert (await server.complete("x")).status_code == 200
        assert "stopping" not in server.log
        server.send(signal.SIGTERM)
        assert await server.exit_code() == serve.EXIT_OK
    finally:
        await server.__aexit__(None, None, None)


async def test_a_signal_while_it_imports_ends_it(tmp_path: Path, temp_dir: Path) -> None:
    async with Server(tmp_path, None, None, STACK_PRELOAD=scripted.PRELOAD_FOR_EVER) as server:
        await server.line("preparing for ever")
        server.send(signal.SIGTERM)
        assert await server.exit_code() == serve.EXIT_OK
    assert "Traceback" not in server.log


# --- with something that hangs


def zygote_of(server: Server) -> int:
    (pid,) = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return int(pid)


@pytest.mark.timeout(150)
@pytest.mark.parametrize("signals", [1, 2])
async def test_a_stopped_zygote_does_not_keep_the_server(
    tmp_path: Path, temp_dir: Path, signals: int
) -> None:
    async with Server(tmp_path, IDLE, SLOW) as server, AsyncExitStack() as stack:
        await server.ready()
        (stream,) = await begun(server, ["s"], stack)
        os.kill(zygote_of(server), signal.SIGSTOP)
        server.send(signal.SIGTERM)
        assert (await rest(stream))[-1] == "[DONE]"
        if signals == 2:
            server.send(signal.SIGTERM)
        assert await server.exit_code() == (serve.EXIT_OK if signals == 1 else serve.EXIT_CUT_OFF)
    assert "Traceback" not in server.log


@pytest.mark.timeout(150)
async def test_a_zygote_that_stops_during_the_start_does_not_keep_the_server(
    tmp_path: Path, temp_dir: Path
) -> None:
    async with Server(tmp_path, IDLE, Script(start="die"), RESTART_LIMIT="9") as server:
        await server.line("listening on")
        os.kill(zygote_of(server), signal.SIGSTOP)
        server.send(signal.SIGTERM)
        assert await server.exit_code() in (serve.EXIT_OK, serve.EXIT_START)


@pytest.mark.timeout(150)
async def test_a_stopped_worker_does_not_keep_the_server(
    tmp_path: Path, temp_dir: Path, mark: str
) -> None:
    async with Server(tmp_path, IDLE, SLOW, DRAIN_TIMEOUT_S="0.5") as server:
        await server.ready()
        async with server.stream("s", max_tokens=TOKENS) as stream:
            await anext(stream)
            health = (await server.request("GET", "/health")).json()
            pid = {w["name"]: w["pid"] for w in health["workers"]}["decode-0"]
            os.kill(pid, signal.SIGSTOP)
            send_to_all(mark, signal.SIGTERM)
            *_, error, done = await rest(stream)
        assert (error["error"]["code"], done) == ("not_serving", "[DONE]")
        assert await server.exit_code() == serve.EXIT_CUT_OFF


# --- what a killed front leaves


async def test_the_next_start_removes_what_a_killed_front_left_and_nothing_else(
    tmp_path: Path, temp_dir: Path, mark: str
) -> None:
    async with Server(tmp_path, IDLE, IDLE) as living:
        await living.ready()
        of_living = names_in(temp_dir), shared_memory(mark)
        async with Server(tmp_path, IDLE, IDLE) as killed:
            await killed.ready()
            killed.send(signal.SIGKILL)
            await killed.exit_code()
        assert len(names_in(temp_dir)) == 2
        assert len(shared_memory(mark)) == 4
        async with Server(tmp_path, IDLE, IDLE) as next_one:
            await next_one.ready()
            assert len(names_in(temp_dir)) == 2
            assert names_in(temp_dir) >= of_living[0]
            assert len(shared_memory(mark)) == 4
            assert shared_memory(mark) >= of_living[1]
            next_one.send(signal.SIGTERM)
            assert await next_one.exit_code() == serve.EXIT_OK
        assert (await living.complete("x")).status_code == 200
        assert (names_in(temp_dir), shared_memory(mark)) == of_living
        living.send(signal.SIGTERM)
        assert await living.exit_code() == serve.EXIT_OK


async def test_a_restarted_worker_leaves_nothing_of_the_dead_one(
    tmp_path: Path, temp_dir: Path, mark: str
) -> None:
    async with Server(tmp_path, IDLE, IDLE) as server:
        await server.ready()
        before = shared_memory(mark)
        health = (await server.request("GET", "/health")).json()
        os.kill({w["name"]: w["pid"] for w in health["workers"]}["decode-0"], signal.SIGKILL)
        await server.line("decode-0 is back")
        assert len(shared_memory(mark)) == len(before) == 2
        assert shared_memory(mark) != before
        (folder,) = names_in(temp_dir)
        assert len([name for name in names_in(temp_dir / folder) if "decode" in name]) == 1
        server.send(signal.SIGTERM)
        assert await server.exit_code() == serve.EXIT_OK
