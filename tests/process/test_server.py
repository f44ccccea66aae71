"""The server as a process: what it answers, how it drains, which code it exits with."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
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

HANGS = Script(acts={"h": Act("hang", after=2)})
CUT_OFF = ["server_error", "not_serving"]


async def texts(events: AsyncIterator[Any], count: int) -> str:
    return "".join([(await anext(events))["text"] for _ in range(count)])


async def rest(events: AsyncIterator[Any]) -> list[Any]:
    return [event async for event in events]


@pytest.fixture
def used_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


async def test_it_serves_and_stops(tmp_path: Path) -> None:
    async with Server(tmp_path, DECODE_REPLICAS="2", HATHORA_REGION="seattle") as server:
        await server.ready()
        health = (await server.request("GET", "/health")).json()
        assert health["status"] == "ready"
        assert health["pd_mode"] is True
        assert health["pd_bootstrap_port"] == health["pd_bootstrap_ports"][0]
        assert (health["model"], health["region"]) == ("letters", "seattle")
        workers = {worker["name"]: worker for worker in health["workers"]}
        assert list(workers) == ["prefill-0", "decode-0", "decode-1"]
        assert {worker["state"] for worker in workers.values()} == {"ready"}
        answers = await asyncio.gather(*(server.complete(f"prompt {n}") for n in range(16)))
        assert [a.json()["text"] for a in answers] == [answer_to(f"prompt {n}") for n in range(16)]
        async with server.stream("streamed") as events:
            assert await texts(events, 16) == answer_to("streamed")
            assert await rest(events) == ["[DONE]"]
        server.send(signal.SIGTERM)
        assert await server.exit_code() == serve.EXIT_OK


async def test_a_stream_survives_the_death_of_its_worker(tmp_path: Path) -> None:
    slow = Script(acts={"s": Act(pause_s=0.02)}, schedulers=1)
    async with Server(tmp_path, decode=slow, DECODE_REPLICAS="2") as server:
        await server.ready()
        async with server.stream("s", max_tokens=40) as events:
            begun = await texts(events, 3)
            workers = (await server.request("GET", "/health")).json()["workers"]
            (serving,) = [w for w in workers if w["role"] == "decode" and w["inflight"]]
            os.kill(serving["scheduler_pids"][0], signal.SIGKILL)
            rest_of_it = [event async for event in events]
        text = begun + "".join(event["text"] for event in rest_of_it[:-1])
        assert (text, rest_of_it[-1]) == (answer_to("s", 40), "[DONE]")
        await server.line(f"{serving['name']} is back")
        workers = (await server.request("GET", "/health")).json()["workers"]
        assert {w["name"]: w["restarts"] for w in workers}[serving["name"]] == 1


async def test_one_unified_engine(tmp_path: Path) -> None:
    async with Server(tmp_path, PD_MODE="off") as server:
        await server.ready()
        health = (await server.request("GET", "/health")).json()
        assert (health["pd_mode"], health["pd_bootstrap_port"]) == (False, None)
        assert [worker["name"] for worker in health["workers"]] == ["unified-0"]
        assert (await server.complete("x")).json()["text"] == answer_to("x")
        server.send(signal.SIGINT)
        assert await server.exit_code() == serve.EXIT_OK


# --- clients that go away


async def test_a_client_that_leaves_a_stream_ends_it(tmp_path: Path) -> None:
    async with Server(tmp_path, decode=HANGS) as server:
        await server.ready()
        async with server.stream("h") as events:
            await texts(events, 2)
        await server.line("decode-0 . aborted")
        assert (await server.request("GET", "/health")).json()["inflight"] == 0


async def test_a_client_that_leaves_before_an_answer_ends_it_in_both_engines(
    tmp_path: Path,
) -> None:
    waits = Script(acts={"h": Act("hang")})
    async with Server(tmp_path, prefill=waits) as server:
        await server.ready()
        asking = asyncio.create_task(server.complete("h"))
        await server.line("prefill-0 . hang")
        await server.line("decode-0 . got", 2)  # the first was the token of the start
        asking.cancel()
        for name in ("prefill-0", "decode-0"):
            await server.line(f"{name} . aborted")
        assert (await server.request("GET", "/health")).json()["inflight"] == 0


async def test_a_client_that_leaves_while_it_sends_is_no_crash(tmp_path: Path) -> None:
    async with Server(tmp_path) as server:
        await server.ready()
        port = int((await server.url()).rpartition(":")[2])
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{")
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        assert (await server.complete("x")).status_code == 200
        server.send(signal.SIGTERM)
        assert await server.exit_code() == serve.EXIT_OK
    assert "Traceback" not in server.log


async def test_a_full_service_refuses_before_it_has_read_the_body(tmp_path: Path) -> None:
    async with Server(tmp_path, decode=HANGS, MAX_INFLIGHT="1", MAX_QUEUE="0") as server:
        await server.ready()
        async with server.stream("h") as events:
            await texts(events, 2)
            port = int((await server.url()).rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{")
            await writer.drain()
            status = await asyncio.wait_for(reader.readline(), 10)
            writer.close()
            await writer.wait_closed()
    assert b" 503 " in status


# --- starts that fail


async def test_bad_settings_are_all_named(tmp_path: Path) -> None:
    bad = Server(tmp_path, PD_MODE="maybe", DRAIN_TIMEOUT_S="soon", PREFILL_REPLIKAS="1")
    async with bad as server:
        assert await server.exit_code() == serve.EXIT_SETTINGS
    assert server.lines[0] == "pd_eagle: settings_error"
    for name in ("PD_MODE", "DRAIN_TIMEOUT_S", "PREFILL_REPLIKAS"):
        assert any(line.startswith(name) for line in server.lines)
    assert "Traceback" not in server.log


async def test_a_plan_that_cannot_be_is_refused(tmp_path: Path) -> None:
    async with Server(tmp_path, PREFILL_TP="2") as server:
        assert await server.exit_code() == serve.EXIT_SETTINGS
    assert server.lines[0] == "pd_eagle: plan_refused"
    assert "Traceback" not in server.log


async def test_a_used_port_is_told_before_anything_starts(tmp_path: Path, used_port: int) -> None:
    async with Server(tmp_path, HATHORA_DEFAULT_PORT=str(used_port)) as server:
        assert await server.exit_code() == serve.EXIT_START
    assert server.lines[-2] == "pd_eagle: start_failed"
    assert server.lines[-1].startswith(f"HATHORA_DEFAULT_PORT={used_port}")
    assert server.lines[-1].endswith("Address already in use")


async def test_a_used_bootstrap_port_is_told(tmp_path: Path, used_port: int) -> None:
    async with Server(tmp_path, DISAGG_BOOTSTRAP_PORT=str(used_port)) as server:
        assert await server.exit_code() == serve.EXIT_START
    message = server.lines[server.lines.index("pd_eagle: start_failed") + 1]
    assert message.startswith(f"DISAGG_BOOTSTRAP_PORT={used_port}")
    assert "Traceback" not in server.log


@pytest.mark.parametrize("start", ["raise", "exit", "die"])
async def test_a_failed_start_carries_the_engines_last_words(tmp_path: Path, start: str) -> None:
    decode = Script(start=start, last_words=["no memory", "last words"])  # type: ignore[arg-type]
    async with Server(tmp_path, prefill=Script(start="hang"), decode=decode) as server:
        assert await server.exit_code() == serve.EXIT_START
    message = server.lines[server.lines.index("pd_eagle: start_failed") + 1 :]
    assert message[0].startswith("decode-0 could not start: ")
    assert "  decode-0 | last words" in message


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            {"STACK_OPENAI": "tests.scripted:NoOpenAI"},
            "the OpenAI layer could not be loaded: OSError: the script says",
        ),
        (
            {"STACK_PRELOAD": scripted.PRELOAD_FAILS},
            "what every engine loads could not be loaded: ImportError: the script says",
        ),
    ],
)
async def test_what_cannot_be_loaded_is_a_failed_start(
    tmp_path: Path, part: dict[str, str], message: str
) -> None:
    async with Server(tmp_path, None, None, **part) as server:
        assert await server.exit_code() == serve.EXIT_START
    assert server.lines[server.lines.index("pd_eagle: start_failed") + 1].startswith(message)
    assert "Traceback" not in server.log


@pytest.fixture
def late_openai(tmp_path: Path) -> dict[str, str]:
    """Settings with which the OpenAI layer waits until something is written to GATE."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    return {"STACK_OPENAI": "tests.scripted:LateOpenAI", "GATE": str(gate)}


async def test_a_failed_start_is_told_while_the_openai_layer_is_still_loaded(
    tmp_path: Path, late_openai: dict[str, str]
) -> None:
    async with Server(tmp_path, None, Script(start="raise"), **late_openai) as server:
        await server.line("pd_eagle: start_failed")
        await asyncio.to_thread(Path(late_openai["GATE"]).write_text, "go on")
        assert await server.exit_code() == serve.EXIT_START


# --- before it is ready


async def test_it_is_ready_when_it_can_answer(tmp_path: Path, late_openai: dict[str, str]) -> None:
    async with Server(tmp_path, None, None, **late_openai) as server:
        await server.line("pd_eagle.requests.service ready after")
        for path in ("/health", "/health/ready"):
            response = await server.request("GET", path)
            assert (response.status_code, response.json()["status"]) == (503, "starting")
        assert (await server.complete("x")).json()["error"]["message"] == "the service is starting"
        await asyncio.to_thread(Path(late_openai["GATE"]).write_text, "go on")
        await server.ready()
        assert (await server.request("GET", "/health/ready")).status_code == 200


async def test_while_it_starts_it_lives_and_is_not_ready(tmp_path: Path) -> None:
    async with Server(tmp_path, decode=Script(start="hang")) as server:
        await server.line("decode-0 . starting for ever")
        live, ready, health = [
            await server.request("GET", f"/health{path}") for path in ("/live", "/ready", "")
        ]
        assert (live.status_code, ready.status_code, health.status_code) == (200, 503, 503)
        assert health.json()["status"] == "starting"
        refused = await server.complete("x")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["code"] == "not_serving"
        server.send(signal.SIGTERM)
        assert await server.exit_code() == serve.EXIT_OK


async def test_a_signal_ends_the_first_tokens_too(tmp_path: Path) -> None:
    async with Server(tmp_path, decode=Script(acts={"\0": Act("hang")})) as server:
        await server.line("decode-0 . hang")
        server.send(signal.SIGTERM)
        assert await server.exit_code() == serve.EXIT_OK
    assert "Traceback" not in server.log


# --- the way down


async def test_a_drain_ends_what_runs_and_refuses_what_comes(tmp_path: Path) -> None:
    async with Server(tmp_path, decode=Script(acts={"s": Act(pause_s=0.02)})) as server:
        await server.ready()
        async with server.stream("s", max_tokens=50) as events:
            begun = await texts(events, 1)
            server.send(signal.SIGTERM)
            await server.line("stopping: running requests have 30 s")
            health = await server.request("GET", "/health")
            assert (health.status_code, health.json()["status"]) == (503, "draining")
            assert (await server.request("GET", "/health/live")).status_code == 200
            assert (await server.request("GET", "/health/ready")).status_code == 503
            refused = await server.complete("x")
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert begun + await texts(events, 49) == answer_to("s", 50)
            assert await rest(events) == ["[DONE]"]
        assert await server.exit_code() == serve.EXIT_OK


async def test_what_is_longer_than_the_drain_is_cut_off_with_an_error(tmp_path: Path) -> None:
    async with Server(tmp_path, decode=HANGS, DRAIN_TIMEOUT_S="0.2") as server:
        await server.ready()
        async with server.stream("h") as events:
            assert await texts(events, 2) == answer_to("h", 2)
            server.send(signal.SIGTERM)
            error, done = await rest(events)
        assert [error["error"][key] for key in ("type", "code")] == CUT_OFF
        assert done == "[DONE]"
        assert await server.exit_code() == serve.EXIT_CUT_OFF


async def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    async with Server(tmp_path, decode=HANGS) as server:
        await server.ready()
        async with server.stream("h") as events:
            await texts(events, 2)
            server.send(signal.SIGTERM)
            await server.line("stopping: running requests")
            server.send(signal.SIGTERM)
            error, _ = await rest(events)
        assert [error["error"][key] for key in ("type", "code")] == CUT_OFF
        assert await server.exit_code() == serve.EXIT_CUT_OFF
    assert "Traceback" not in server.log


async def test_a_second_signal_does_not_wait_for_a_worker_that_will_not_stop(
    tmp_path: Path,
) -> None:
    async with Server(tmp_path, decode=Script(shutdown="hang")) as server:
        await server.ready()
        server.send(signal.SIGTERM)
        await server.line("decode-0 . shut down")
        began = time.monotonic()
        server.send(signal.SIGTERM)
        assert await server.exit_code() == serve.EXIT_CUT_OFF
    assert time.monotonic() - began < 4  # before the worker's own time was up
    assert "Traceback" not in server.log


async def test_nothing_outlives_a_killed_server(tmp_path: Path, mark: str) -> None:
    async with Server(tmp_path, decode=HANGS) as server:
        await server.ready()
        others = processes.alive_with(mark) - {server.pid}
        assert len(others) == 3
        port = int((await server.url()).rpartition(":")[2])
        server.send(signal.SIGKILL)
        assert await server.exit_code() == -signal.SIGKILL
    assert not processes.still_alive(others, timeout_s=5)
    with socket.create_server(("127.0.0.1", port)):
        pass


async def test_only_the_front_holds_the_port(tmp_path: Path, mark: str) -> None:
    async with Server(tmp_path) as server:
        await server.ready()
        sockets = _sockets(server.pid)
        for pid in processes.alive_with(mark) - {server.pid}:
            assert not _listening(await server.url()) & _sockets(pid)
        assert _listening(await server.url()) & sockets


def _sockets(pid: int) -> set[str]:
    links = (os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir())
    return {link for link in links if link.startswith("socket:")}


def _listening(url: str) -> set[str]:
    port = f":{int(url.rpartition(':')[2]):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {f"socket:[{row[9]}]" for row in rows if row[1].endswith(port) and row[3] == "0A"}


async def test_a_service_that_stays_dead_ends_its_process(tmp_path: Path) -> None:
    async with Server(tmp_path, RESTART_LIMIT="0", FAILED_EXIT_S="4") as server:
        await server.ready()
        assert (await server.request("GET", "/health/live")).status_code == 200
        workers = (await server.request("GET", "/health")).json()["workers"]
        os.kill(workers[1]["pid"], signal.SIGKILL)
        await server.line("decode-0: given up")
        live = [await server.request("GET", "/health/live")]
        while live[-1].status_code == 200:
            await asyncio.sleep(0.05)
            live.append(await server.request("GET", "/health/live"))
        assert (live[-1].status_code, live[-1].json()) == (503, {"status": "failing"})
        assert len(live) > 1  # not at once
        assert (await server.complete("x")).status_code == 503
        assert await server.exit_code() == serve.EXIT_FAILED
        assert "nothing has served for 4 s (FAILED_EXIT_S)" in server.log


async def test_http_that_ends_by_itself_ends_engines_and_process(tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    async with Server(tmp_path, HTTP_FAILS_BY=str(sign)) as server:
        await server.ready()
        sign.touch()
        assert await server.exit_code() == serve.EXIT_HTTP
        assert "a test says that HTTP ends" in server.log
