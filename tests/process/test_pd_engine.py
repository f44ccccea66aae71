"""`PDEngine` over scripted engines: what comes back, what an end leaves, what a failure says."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace

from pd_eagle import deployment as deployments
from pd_eagle import pd_engine
from pd_eagle.errors import InvalidRequest, NotServing, SettingsError, StartFailed, WorkerDied
from pd_eagle.pd_engine import PDEngine
from tests import scripted
from tests.otlp import Collector, names
from tests.process import processes
from tests.process.server import tiny_model
from tests.scripted import Act, Script, answer_to, ids_of
from tests.unit.generate_input import GenerateInput
from tests.unit.test_tracing import Spans

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Start = Callable[..., PDEngine]

SCRIPT = Script(acts={"h": Act("hang", after=2), "s": Act(pause_s=0.01)})
SHORT = {"max_new_tokens": 4}


class LetterTokenizer:
    """A token a letter; a chat is its contents, one after another."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": ids_of(text)}

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))

    def apply_chat_template(self, messages: Any, **_: Any) -> dict[str, Any]:
        if isinstance(messages[0], list):
            return {"input_ids": [self.apply_chat_template(chat)["input_ids"] for chat in messages]}
        return self("".join(message["content"] for message in messages))


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Give `PDEngine` with the scripted stack in SGLang's place."""
    decide = partial(deployments.decide, stack=scripted.STACK)
    monkeypatch.setattr(pd_engine, "deployments", SimpleNamespace(decide=decide))
    monkeypatch.setattr(pd_engine, "load_tokenizer", lambda args: LetterTokenizer())
    monkeypatch.setattr(pd_engine, "generate_input_class", lambda: GenerateInput)
    settings = {"model_path": str(tiny_model(tmp_path)), "device": "cpu", "pd_mode": "on"}
    settings["served_model_name"] = "letters"

    def start(script: Script = SCRIPT, **more: Any) -> PDEngine:
        return PDEngine(**settings, decode_engine_args=script.as_args(), **more)

    return start


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

    return bool(engine._loop.call(wait()))


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
        ({}, "Either text"),
    ],
)
def test_what_cannot_be_served_is_told(
    engine: PDEngine, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        engine.generate(**arguments)
    assert engine.generate("x", SHORT)["text"] == answer_to("x", 4)


def test_two_in_one_process(start: Start) -> None:
    with start() as first, start() as second:
        assert first.generate("a", SHORT) != second.generate("b", SHORT)
    with start() as third:
        assert third.generate("a", SHORT)["text"] == answer_to("a", 4)


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
