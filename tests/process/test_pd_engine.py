"""`PDEngine` over scripted engines: what comes back, what an end leaves, what a failure says."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import weakref
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from opentelemetry import trace

from pd_eagle import front_thread, pd_engine
from pd_eagle.errors import (
    ContextLengthExceeded,
    EngineError,
    InvalidRequest,
    NotServing,
    NotSupported,
    Overloaded,
    SettingsError,
    StartFailed,
    WorkerDied,
)
from pd_eagle.plan import devices
from pd_eagle.plan.devices import Device, Inventory
from tests.otlp import Collector, names
from tests.process import pd_scripted, processes
from tests.process.pd_scripted import scripted_stack
from tests.scripted import Act, Script, answer_to, ids_of
from tests.unit.test_tracing import Spans

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pd_eagle import GenerateResult
    from pd_eagle.pd_engine import PDEngine

    Start = Callable[..., PDEngine]

SHORT = {"max_new_tokens": 4}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Give `PDEngine` with the scripted stack in SGLang's place."""
    with scripted_stack():
        yield partial(pd_scripted.start, tmp_path)


@pytest.fixture
def engine(start: Start) -> Iterator[PDEngine]:
    with start() as engine:
        yield engine


def test_one_prompt(engine: PDEngine) -> None:
    assert engine.generate("abc", SHORT)["text"] == answer_to("abc", 4)
    assert engine.generate(input_ids=ids_of("abc"), sampling_params=SHORT)["text"] == answer_to(
        "abc", 4
    )
    assert engine.health()["status"] == "ready"
    assert engine.plan.mode == "pd"


def test_a_batch(engine: PDEngine) -> None:
    prompts = [f"prompt {n}" for n in range(8)]
    results = engine.generate(prompts, SHORT)
    assert [result["text"] for result in results] == [answer_to(p, 4) for p in prompts]


def test_a_chat_and_several(engine: PDEngine) -> None:
    chat = [{"role": "user", "content": "ab"}, {"role": "user", "content": "c"}]
    assert engine.generate(messages=chat, sampling_params=SHORT)["text"] == answer_to("abc", 4)
    both = engine.generate(messages=[chat, chat[:1]], sampling_params=SHORT)
    assert [result["text"] for result in both] == [answer_to("abc", 4), answer_to("ab", 4)]


def test_a_stream(engine: PDEngine) -> None:
    texts = [result["text"] for result in engine.generate("abc", SHORT, stream=True)]
    assert texts == [answer_to("abc", 4)[:n] for n in range(1, 5)]


def test_from_a_running_loop(engine: PDEngine) -> None:
    async def cells() -> None:
        whole = engine.async_generate("abc", SHORT)
        other = engine.async_generate("def", SHORT)
        assert [r["text"] for r in await asyncio.gather(whole, other)] == [
            answer_to("abc", 4),
            answer_to("def", 4),
        ]
        stream = await engine.async_generate("abc", SHORT, stream=True)
        assert [result["text"] async for result in stream][-1] == answer_to("abc", 4)
        assert engine.generate("x", SHORT)["text"] == answer_to("x", 4)  # blocks, as a cell may

    asyncio.run(cells())


def idle(engine: PDEngine) -> bool:
    """Wait until nothing runs; the answer comes from the engines' own processes."""
    service = engine._front.service

    async def wait() -> bool:
        for worker in service.workers:
            while (load := await worker.ping()) is None or load.running:
                pass
        return service.open == 0

    return bool(engine._thread.call(wait()))


def test_leaving_a_stream_aborts_it(engine: PDEngine) -> None:
    results = engine.generate("h", stream=True)
    assert next(results)["text"] == answer_to("h", 1)
    results.close()
    assert idle(engine)


def test_cancelling_aborts(engine: PDEngine) -> None:
    async def cells() -> None:
        task = asyncio.create_task(engine.async_generate("h"))
        stream = await engine.async_generate("h", stream=True)
        await anext(stream)
        await stream.aclose()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cells())
    assert idle(engine)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "a", "bootstrap_room": 1}, "bootstrap_room: wanted unset"),
        ({"prompt": "a", "messages": [{}]}, "messages: wanted without prompt"),
        ({"messages": []}, "wanted at least one message"),
        ({"prompt": "a", "colour": "blue"}, "colour"),
        ({"prompt": "a", "image_data": "cat.png"}, "image_data"),
        ({"input_ids": [999]}, "token id 999"),
        ({"prompt": "a", "sampling_params": {"max_tokens": 4}}, "did you mean max_new_tokens"),
        ({"prompt": ["a", "b"], "sampling_params": [{}, {"top-p": 1}]}, "did you mean top_p"),
        ({"prompt": "a", "sampling_params": "greedy"}, "sampling_params='greedy'"),
        ({"prompt": ["a", "b"], "sampling_params": [{}]}, "a list of 1 for 2 prompts"),
        ({}, "Either text"),
    ],
)
def test_what_cannot_be_served_is_told(
    engine: PDEngine, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        engine.generate(**arguments)
    assert engine.generate("x", SHORT)["text"] == answer_to("x", 4)


def test_what_it_says_of_itself(engine: PDEngine) -> None:
    assert repr(engine).startswith("PDEngine('letters', ready)\nworker")
    assert "decode-0" in repr(engine)
    assert "generate" in dir(engine)
    assert "update_weights_from_disk" not in dir(engine)
    assert engine.tokenizer_manager.tokenizer("a") == {"input_ids": ids_of("a")}
    assert set(engine.get_all_child_pids()) >= {w["pid"] for w in engine.health()["workers"]}


def test_the_engines_do_what_they_are_told(engine: PDEngine) -> None:
    assert engine.flush_cache().success
    stream = engine.generate("h", stream=True)
    next(stream)
    busy = engine.flush_cache()
    assert not busy.success
    assert "decode-0: requests are running" in busy.message
    stream.close()
    info = engine.get_server_info()
    assert info["model_path"] == "letters"
    assert [state["worker"] for state in info["internal_states"]] == ["decode-0", "prefill-0"]
    assert info["pd_eagle"]["status"] == "ready"
    engine.start_profile(num_steps=2)
    with pytest.raises(EngineError, match="no profile was started"):
        engine.stop_profile()
    with pytest.raises(NotSupported, match="update_weights_from_disk: prefill and decode"):
        engine.update_weights_from_disk("/models/m")  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="token id 999"):
        engine.generate(input_ids=[999])


def test_a_request_ends_by_the_name_that_it_was_given(engine: PDEngine) -> None:
    mine, other = (engine.generate("h", stream=True, rid=rid) for rid in ("mine", "other"))
    for stream in (mine, other):
        assert next(stream)["text"] == answer_to("h", 1)
    engine.abort_request("nobody's")
    engine.tokenizer_manager.abort_request(rid="mine")
    last = list(mine)[-1]
    assert last["text"] == answer_to("h", 2)
    assert last["meta_info"]["finish_reason"]["type"] == "abort"
    assert last["meta_info"]["id"] == "mine"
    assert engine.health()["inflight"] == 1
    engine.abort_request(abort_all=True)
    assert list(other)[-1]["meta_info"]["finish_reason"]["type"] == "abort"
    assert idle(engine)


def test_a_request_that_waits_ends_when_its_turn_comes(start: Start) -> None:
    async def cells(engine: PDEngine) -> None:
        running = await engine.async_generate("h", stream=True)
        await anext(running)
        waiting = asyncio.create_task(engine.async_generate("h", rid="mine"))
        while not engine.health()["queued"]:  # noqa: ASYNC110 - another loop changes it
            await asyncio.sleep(0.01)
        engine.abort_request("mine")
        await running.aclose()
        assert (await waiting)["meta_info"]["finish_reason"]["type"] == "abort"

    with start(max_inflight=1) as engine:
        asyncio.run(cells(engine))
        assert idle(engine)


def test_two_in_one_process(start: Start) -> None:
    with start() as first, start() as second:
        assert first.generate("a", SHORT) != second.generate("b", SHORT)
    with start() as third:
        assert third.generate("a", SHORT)["text"] == answer_to("a", 4)


# --- batches of any length


@pytest.mark.parametrize("stream", [False, True])
def test_a_batch_may_be_longer_than_the_queue(start: Start, stream: bool) -> None:
    prompts = [f"prompt {n}" for n in range(300)]
    with start(max_inflight=4) as engine:
        waiting = engine._front.service.admission.limits.max_queue
        assert waiting < len(prompts)
        results = engine.generate(prompts, SHORT, stream=stream)
        if stream:
            last = {result["index"]: result for result in results}
            results = [last[n] for n in range(len(prompts))]
    assert [result["text"] for result in results] == [answer_to(p, 4) for p in prompts]


def test_no_part_of_a_call_is_refused_for_the_others(start: Start) -> None:
    slow = {"max_new_tokens": 10}  # a tenth of a second
    one_at_a_time = msgspec.structs.replace(pd_scripted.SCRIPT, max_total_tokens=600)
    with start(one_at_a_time, max_inflight=2, max_queue=0, queue_timeout_s=0.05) as engine:
        assert len(engine.generate(["s" * 300] * 6, slow)) == 6
        # between calls the settings hold
        streams = [engine.generate("s", {"max_new_tokens": 250}, stream=True) for _ in range(2)]
        for stream in streams:
            next(stream)
        with pytest.raises(Overloaded, match="no more are taken"):
            engine.generate(["a", "b"])
        for stream in streams:
            stream.close()


def test_calls_wait_for_each_other_as_long_as_it_takes(start: Start) -> None:
    async def cells(engine: PDEngine) -> list[GenerateResult]:
        return await asyncio.gather(*(engine.async_generate("abc", SHORT) for _ in range(200)))

    with start(max_inflight=2) as engine:
        assert engine._front.service.admission.limits.max_queue < 198
        assert {a["text"] for a in asyncio.run(cells(engine))} == {answer_to("abc", 4)}


def test_a_bad_prompt_of_a_batch_is_told_while_the_first_ones_run(start: Start) -> None:
    prompts = ["h"] * 4 + ["a"] * 50 + ["x" * 2000]
    with start(max_inflight=2) as engine:
        with pytest.raises(ContextLengthExceeded, match="prompt 54: the prompt has 2000 tokens"):
            engine.generate(prompts)
        assert idle(engine)


def test_a_paused_reader_holds_no_place(start: Start) -> None:
    with start(max_inflight=2) as engine:
        results = engine.generate(["abc"] * 50, {"max_new_tokens": 100}, stream=True)
        next(results)
        assert engine.generate("x", SHORT)["text"] == answer_to("x", 4)
        while engine.health()["inflight"]:
            time.sleep(0.01)
        # so nothing of the rest has begun, and its results are not kept anywhere
        served = sum(worker.served for worker in engine._front.service.workers)
        assert served < 2 * 20
        assert sum(result["text"] == answer_to("abc", 100) for result in results) == 50


def test_a_bar_counts_answered_prompts(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    with start() as engine:
        engine.generate(["a", "b", "c"], SHORT, progress=True)
        assert "3/3" in capfd.readouterr().err
        list(engine.generate(["a", "b"], SHORT, stream=True, progress=True))
        assert "2/2" in capfd.readouterr().err
        engine.generate(["a", "b"], SHORT)
        assert "2/2" not in capfd.readouterr().err


# --- forks


def in_a_fork(attempts: Callable[[], list[str]]) -> list[str]:
    """Return what `attempts` returns in a forked child; fails after 10 s."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, json.dumps(attempts()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    try:
        assert select.select([reading], [], [], 10)[0], "the child hangs"
        return list(json.loads(os.read(reading, 2**16)))
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_forked_child_is_told_at_once(engine: PDEngine) -> None:
    begun = engine.generate("s", {"max_new_tokens": 100}, stream=True)
    next(begun)

    async def later() -> None:
        async for _ in await engine.async_generate("a", stream=True):
            pass

    calls: list[Callable[[], object]] = [
        lambda: engine.generate("a"),
        lambda: next(engine.generate("a", stream=True)),
        lambda: list(begun),
        lambda: asyncio.run(engine.async_generate("a")),
        lambda: asyncio.run(later()),
        engine.health,
        engine.flush_cache,
        engine.get_all_child_pids,
        engine.score,
        engine.shutdown,
    ]

    def attempts() -> list[str]:
        said = []
        for call in calls:
            with pytest.raises(NotServing) as caught:
                call()
            said.append(str(caught.value))
        with engine:
            pass  # leaving a block ends nothing in the child
        return said

    said = in_a_fork(attempts)
    assert len(said) == len(calls)
    assert all(f"belongs to process {os.getpid()}" in text for text in said)
    assert list(begun)[-1]["text"] == answer_to("s", 100)
    assert engine.generate("a", SHORT)["text"] == answer_to("a", 4)


def test_a_forked_child_holds_nothing(start: Start) -> None:
    def links() -> list[str]:
        return sorted(processes.open_files().values())

    before = set(links())
    with start() as engine:
        ours = set(links()) - before
        process = engine._front.service.workers[0]._process
        assert process is not None
        assert os.readlink(f"/proc/self/fd/{process.lifeline.fileno()}") in ours
        # a socket pair and a pipe a worker, three of the zygote's, a port's
        assert len(ours) >= 3 * len(engine.plan.workers) + 3 + 1
        kept = set(in_a_fork(links)) - before
    assert not kept & ours
    # What is left is pipes of its own: the one it answers on, and one of libuv.
    assert all(name.startswith("pipe:") for name in kept)


def test_a_child_that_ends_removes_no_folder(engine: PDEngine) -> None:
    folder = engine._front.service.workers[0].temp_dir
    assert folder is not None
    pid = os.fork()
    if pid == 0:
        try:
            weakref.finalize._exitfunc()  # type: ignore[attr-defined] # as at the exit of Python
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert folder.is_dir()


def test_a_later_start_in_a_forked_child_works(start: Start, tmp_path: Path) -> None:
    with start():
        answers = in_a_fork(lambda: [start().generate("a", SHORT)["text"]])
    assert answers == [answer_to("a", 4)]


@contextlib.contextmanager
def owner(what: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Give a script that owns an engine, when it is there, and the child that it forked."""
    script = subprocess.Popen(
        [sys.executable, "-m", "tests.process.pd_scripted", what, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
    )
    with script:
        assert script.stdout is not None
        try:
            yield script, script.stdout.readline().split()[-1]
        finally:
            script.kill()


def test_engines_end_with_their_owner_though_its_child_lives_on(tmp_path: Path, mark: str) -> None:
    with owner("fork", tmp_path) as (script, child):
        engines = processes.alive_with(mark) - {script.pid, int(child)}
        assert len(engines) >= 3
        script.kill()
        script.wait()
        left = processes.still_alive(engines, timeout_s=5)
        lives = processes.still_alive({int(child)}, timeout_s=0)
        os.kill(int(child), signal.SIGKILL)
    assert not left
    assert lives


# --- every end


def test_a_script_may_end_without_a_shutdown(tmp_path: Path, mark: str) -> None:
    with owner("end", tmp_path) as (script, _):
        folders = set(Path(tempfile.gettempdir()).glob("pd_eagle-*"))
        assert script.wait(20) == 0
        assert script.stdout is not None
        stopped = re.findall(r"[\w-]+ \| shut down", script.stdout.read())
    assert sorted(stopped) == ["decode-0 | shut down", "prefill-0 | shut down"]
    assert not processes.still_alive(processes.alive_with(mark), timeout_s=2)
    assert folders - set(Path(tempfile.gettempdir()).glob("pd_eagle-*")), "its folder is left"


def ends(pids: set[int]) -> bool:
    """Wait for what an engine that nobody refers to has left, in this process too."""
    left = processes.still_alive(pids, timeout_s=10)
    front_thread.await_endings()
    return not left


def test_a_dropped_engine_ends(start: Start, mark: str) -> None:
    engine = start()
    assert engine.generate("a", SHORT)
    del engine
    assert ends(processes.alive_with(mark))


def test_an_engine_in_a_cycle_ends_when_it_is_collected(start: Start, mark: str) -> None:
    cycle: list[Any] = [start()]
    cycle.append(cycle)

    async def collect() -> None:  # where a blocking end would stop everything
        nonlocal cycle
        cycle = []
        began = time.monotonic()
        await asyncio.to_thread(gc.collect)
        assert time.monotonic() - began < 5

    asyncio.run(collect())
    assert ends(processes.alive_with(mark))


def test_a_stream_keeps_its_engine(start: Start, mark: str) -> None:
    results = start().generate("s", {"max_new_tokens": 30}, stream=True)
    assert list(results)[-1]["text"] == answer_to("s", 30)
    del results
    assert ends(processes.alive_with(mark))


def test_a_cell_run_again_leaves_one_engine(start: Start, mark: str) -> None:
    engine = start()
    first = processes.alive_with(mark)
    engine = start()
    assert ends(first)
    assert engine.generate("a", SHORT)["text"] == answer_to("a", 4)
    engine.shutdown()


def test_a_start_waits_for_those_that_end(start: Start, mark: str) -> None:
    engine = start(disagg_bootstrap_port=31_771)
    del engine
    with start(disagg_bootstrap_port=31_771) as engine:  # else: somebody uses it
        assert engine.generate("a", SHORT)["text"] == answer_to("a", 4)


def test_a_front_that_cannot_be_made_leaves_nothing(
    start: Start, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no front")

    monkeypatch.setattr(front_thread, "Front", fails)
    with pytest.raises(RuntimeError, match="no front"):
        start()
    assert not processes.alive_with(mark)
    assert "pd_eagle" not in {thread.name for thread in threading.enumerate()}


def test_a_start_refused_for_its_port_leaves_no_zygote(start: Start, mark: str) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        with pytest.raises(StartFailed, match="wanted a free port") as kept:
            start(disagg_bootstrap_port=taken.getsockname()[1])
        assert not processes.alive_with(mark), kept


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    h100s = (Device(n, "NVIDIA H100 80GB HBM3", f"GPU-{uuid.uuid4()}", 80 * 2**30) for n in (0, 1))
    inventory = Inventory("cuda", tuple(h100s), "a test")
    monkeypatch.setattr(devices, "discover", lambda *_: inventory)


@pytest.mark.usefixtures("two_gpus")
def test_a_second_on_the_same_gpus_is_told_who_has_them(start: Start, mark: str) -> None:
    with start(device="cuda") as first:
        running = processes.alive_with(mark)
        with pytest.raises(StartFailed, match=r"GPU 0 .* this process .* serves letters; GPU 1 "):
            start(device="cuda")
        assert processes.alive_with(mark) == running
        assert first.generate("a", SHORT)["text"] == answer_to("a", 4)
        start(device="cuda", mem_fraction_static=0.4).shutdown()  # meant to share
    start(device="cuda").shutdown()


def test_two_threads_may_shut_it_down(start: Start) -> None:
    engine = start()
    ends = [threading.Thread(target=engine.shutdown) for _ in range(4)]
    for end in ends:
        end.start()
    for end in ends:
        end.join(20)
        assert not end.is_alive()


def test_engines_that_do_not_stop_are_killed(
    start: Start, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start()
    in_time = engine._front.stop
    started = [worker._process for worker in engine._front.service.workers]

    async def late(drain_timeout_s: float) -> bool:
        for process in started:
            assert process is not None
            await process.exited.wait()
        return await in_time(drain_timeout_s)

    monkeypatch.setattr(front_thread, "_STOP_TIMEOUT_S", 0.1)
    monkeypatch.setattr(engine._front, "stop", late)
    assert engine.shutdown() is False
    assert not processes.still_alive(processes.alive_with(mark), timeout_s=5)


def test_after_the_shutdown(start: Start, mark: str) -> None:
    engine = start()
    assert processes.alive_with(mark)
    assert engine.shutdown() is True
    assert engine.shutdown() is True
    assert not processes.still_alive(processes.alive_with(mark), timeout_s=2)
    with pytest.raises(NotServing, match="has been shut down"):
        engine.generate("x")


def test_a_shutdown_may_let_requests_end(start: Start) -> None:
    engine = start()
    results = engine.generate("s", {"max_new_tokens": 30}, stream=True)
    next(results)
    ending = threading.Thread(target=engine.shutdown, args=(True,))
    ending.start()
    assert list(results)[-1]["text"] == answer_to("s", 30)
    ending.join()


def test_a_shutdown_cuts_off_what_is_longer(start: Start) -> None:
    engine = start()
    results = engine.generate("h", stream=True)
    next(results)
    assert engine.shutdown(0.05) is False
    with pytest.raises(NotServing, match="it is stopping"):
        list(results)


def test_a_failed_start_leaves_nothing(start: Start, mark: str) -> None:
    script = Script(start="raise", last_words=["no memory"])
    with pytest.raises(StartFailed, match="decode-0 could not start") as caught:
        start(script)
    assert "  decode-0 | no memory" in str(caught.value)
    # while the error is still held, as a notebook does
    assert not processes.still_alive(processes.alive_with(mark), timeout_s=2)
    assert "pd_eagle" not in {thread.name for thread in threading.enumerate()}


def test_a_tokenizer_that_cannot_be_loaded_leaves_nothing(
    start: Start, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(args: object) -> None:
        raise OSError("no tokenizer.json")

    monkeypatch.setattr(pd_engine, "load_tokenizer", fails)
    with pytest.raises(OSError, match="no tokenizer"):
        start(Script(start="hang"))
    assert not processes.still_alive(processes.alive_with(mark), timeout_s=2)


def test_bad_settings_are_told_before_anything_starts(start: Start, mark: str) -> None:
    with pytest.raises(SettingsError, match="colour"):
        start(colour="blue")
    assert not processes.alive_with(mark)


def test_a_death_is_an_error_where_nothing_may_be_tried_again(start: Start) -> None:
    with (
        start(Script(acts={"d": Act("die", after=2)}), resume=False) as engine,
        pytest.raises(WorkerDied, match="RESUME is off"),
    ):
        engine.generate("d")


# --- spans


async def test_the_callers_current_span_is_the_parent(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = Spans()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", spans.provider)
    with await asyncio.to_thread(start) as engine:
        with spans.tracing.tracer.start_as_current_span("caller") as caller:
            await asyncio.to_thread(engine.generate, "x", SHORT)
            await engine.async_generate("x", SHORT)
            async for _ in await engine.async_generate("x", SHORT, stream=True):
                pass
        await asyncio.to_thread(engine.shutdown)
    of_requests = [span for span in spans.finished if span.name == "text_completion letters"]
    assert len(of_requests) == 3
    for span in of_requests:
        assert span.parent == caller.get_span_context()
    spans.provider.shutdown()


def test_a_shutdown_sends_what_is_left(start: Start) -> None:
    with Collector() as collector:
        with start(otel_exporter_otlp_endpoint=collector.url) as engine:
            engine.generate("x", SHORT)
        assert "text_completion letters" in names(collector.spans)
