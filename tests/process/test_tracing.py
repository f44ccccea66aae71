"""Spans of the server as a process, as a collector gets them; scripted engines."""

from __future__ import annotations

import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest

from pd_eagle import serve
from pd_eagle.requests.policy import ServicePolicy
from tests.otlp import Collector, attributes, names
from tests.process.scripted_server import Server
from tests.process.stage import request, text_of
from tests.scripted import Act, Script, answer_to
from tests.unit.test_tracing import Spans

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.process.stage import Stage

TRACE, PARENT = bytes.fromhex("0af7651916cd43dd8448eb211c80319c"), bytes.fromhex("b7ad6b7169203331")
HEADERS = {"traceparent": f"00-{TRACE.hex()}-{PARENT.hex()}-01", "tracestate": "a=b"}
PHASES = ["queue", "prefill", "first_delta", "decode"]
#: What a batch waits for by itself: longer than the test, so that only the stop sends it.
NEVER_MS = "600000"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


async def test_a_request_is_traced_and_a_stop_sends_what_is_left(
    tmp_path: Path, collector: Collector
) -> None:
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": NEVER_MS,
        "HATHORA_REGION": "seattle",
    }
    async with Server(tmp_path, None, None, **variables) as server:
        await server.ready()
        body = {"prompt": "x", "max_tokens": 4}
        answer = await server.request("POST", "/v1/completions", body, HEADERS)
        assert answer.json()["text"] == answer_to("x", 4)
        await server.request("GET", "/metrics")
        assert collector.spans == []
        server.send(signal.SIGTERM)
        assert await server.exit_code() == serve.EXIT_OK
    assert collector.paths == {"/v1/traces"}
    spans = {span.name: span for span in collector.spans}
    request_name, server_name = "text_completion letters", "POST /v1/completions"
    assert names(collector.spans) == sorted([*PHASES, request_name, server_name])
    assert {span.trace_id for span in spans.values()} == {TRACE}
    assert spans[server_name].parent_span_id == PARENT
    assert {span.trace_state for span in spans.values()} == {"a=b"}
    assert spans[request_name].parent_span_id == spans[server_name].span_id
    assert {spans[name].parent_span_id for name in PHASES} == {spans[request_name].span_id}
    assert attributes(spans[server_name])["http.response.status_code"] == 200
    assert attributes(spans[request_name])["gen_ai.usage.output_tokens"] == 4
    assert attributes(spans["decode"])["pd_eagle.worker.prefill"] == "prefill-0"
    (resource,) = collector.resources
    assert (resource["service.name"], resource["cloud.region"]) == ("pd-eagle", "seattle")


async def test_a_stream_that_ends_with_the_drain_is_traced_to_its_end(
    tmp_path: Path, collector: Collector
) -> None:
    slow = Script(acts={"s": Act(pause_s=0.02)})
    variables = {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.url}/mine",
        "OTEL_BSP_SCHEDULE_DELAY": NEVER_MS,
    }
    async with Server(tmp_path, None, slow, **variables) as server:
        await server.ready()
        async with server.stream("s", max_tokens=20) as events:
            await anext(events)
            server.send(signal.SIGTERM)
            assert [event async for event in events][-1] == "[DONE]"
        assert await server.exit_code() == serve.EXIT_OK
    assert collector.paths == {"/mine"}
    spans = {span.name: span for span in collector.spans}
    assert spans["POST /v1/completions"].parent_span_id == b""
    assert attributes(spans["text_completion letters"])["gen_ai.usage.output_tokens"] == 20


async def test_a_collector_that_does_not_answer_keeps_no_stop(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        endpoint = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        async with Server(tmp_path, None, None, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint) as server:
            await server.ready()
            assert (await server.complete("x")).status_code == 200
            began = time.monotonic()
            server.send(signal.SIGTERM)
            assert await server.exit_code() == serve.EXIT_OK
        assert time.monotonic() - began < 9
    assert "spans are lost" in server.log


async def test_off_the_server_makes_no_spans(tmp_path: Path, collector: Collector) -> None:
    async with Server(tmp_path) as server:
        await server.ready()
        await server.request("POST", "/v1/completions", {"prompt": "x"}, HEADERS)
        server.send(signal.SIGTERM)
        assert await server.exit_code() == serve.EXIT_OK
    assert "spans" not in server.log
    assert collector.spans == []


async def test_a_death_is_an_event_of_the_request(forked: Stage) -> None:
    dies = Script(acts={"d": Act("die", after=3)})
    spans = Spans()
    service = await forked.service(
        "prefill",
        "decode",
        "decode",
        scripts={"decode-0": dies},
        policy=ServicePolicy(),
        watch=spans.begin,
    )
    texts = [await text_of(service.stream(request("d"))) for _ in range(2)]
    assert texts == [answer_to("d")] * 2
    (resumed,) = [span for span in spans.finished if span.events]
    assert [event.name for event in resumed.events] == ["pd_eagle.resume"]
    assert resumed.context is not None
    below = [
        span
        for span in spans.finished
        if span.parent is not None and span.parent.span_id == resumed.context.span_id
    ]
    assert [span.name for span in below] == [*PHASES, *PHASES[1:]]
    assert [dict(span.attributes or {}).get("pd_eagle.worker.decode") for span in below] == [
        None,
        *["decode-0"] * 3,
        *["decode-1"] * 3,
    ]
    failed = [span.name for span in below if not span.status.is_ok]
    assert failed == ["decode"]
    spans.provider.shutdown()
