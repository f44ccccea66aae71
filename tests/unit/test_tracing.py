"""Spans of requests, as OpenTelemetry's own exporter in memory gets them."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any, cast

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from pd_eagle.errors import Overloaded, WorkerDied
from pd_eagle.messages import Options, Request
from pd_eagle.requests import tracing
from pd_eagle.requests.exposition import Exposition
from pd_eagle.requests.metrics import Metrics
from pd_eagle.requests.tracing import Tracing
from tests import asgi
from tests.unit.scripted_pair import Half, pair_of
from tests.unit.test_metrics import series, watched

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pd_eagle.requests.exposition import Watched
    from pd_eagle.requests.metrics import RequestWatch

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
REQUEST = Request("rid", [1, 2, 3], {"max_new_tokens": 5, "temperature": 0.5, "stop": ["x"]})
PAIR = pair_of(Half("decode"), Half("prefill"))


class Spans:
    """Everything that was traced."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = Tracing(self.provider)
        self.metrics = Metrics()
        self.exposition = Exposition(self.metrics, cast("Watched", watched()))

    def begin(self, request: Request = REQUEST) -> RequestWatch:
        return self.tracing.watching(self.metrics, "letters")(request)

    @property
    def finished(self) -> tuple[ReadableSpan, ...]:
        return self._exporter.get_finished_spans()

    def names(self) -> list[str]:
        return [span.name for span in self.finished]

    def named(self, name: str) -> ReadableSpan:
        (span,) = [span for span in self.finished if span.name == name]
        return span


@pytest.fixture
def spans() -> Iterator[Spans]:
    made = Spans()
    yield made
    made.provider.shutdown()


def context_of(span: ReadableSpan) -> trace.SpanContext:
    return cast("trace.SpanContext", span.context)


def parent_id(span: ReadableSpan) -> int:
    assert span.parent is not None
    return span.parent.span_id


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def answer(watch: RequestWatch) -> None:
    watch.admitted(3)
    watch.attempt(PAIR, REQUEST)
    watch.phase("prefill", 0.1)
    watch.phase("first_delta", 0.1)
    watch.delta(1)
    watch.delta(2)
    watch.finished({"finish_reason": {"type": "length", "length": 3}})
    watch.end()


def test_a_request_is_one_span_with_one_below_it_for_each_phase(spans: Spans) -> None:
    answer(spans.begin())
    phases = ["queue", "prefill", "first_delta", "decode"]
    assert spans.names() == [*phases, "text_completion letters"]
    whole = spans.named("text_completion letters")
    assert {parent_id(spans.named(name)) for name in phases} == {context_of(whole).span_id}
    times = [whole.start_time]
    for phase in map(spans.named, phases):  # one after the other
        times += [phase.start_time, phase.end_time]
    times += [whole.end_time]
    assert times == sorted(cast("list[int]", times))
    assert attributes(whole) == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "sglang",
        "gen_ai.request.model": "letters",
        "gen_ai.response.model": "letters",
        "gen_ai.response.id": "rid",
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.response.finish_reasons": ("length",),
        "pd_eagle.outcome": "finished",
        "pd_eagle.attempts": 1,
    }
    assert attributes(spans.named("decode")) == {
        "pd_eagle.rid": "rid",
        "pd_eagle.attempt": 1,
        "pd_eagle.worker.prefill": "prefill-0",
        "pd_eagle.worker.decode": "decode-0",
    }
    assert whole.status.status_code is StatusCode.UNSET


def test_the_series_hear_the_same(spans: Spans) -> None:
    answer(spans.begin())
    found = series(spans.exposition)
    assert found["pd_eagle_requests_total", ("finished",)] == 1
    assert found["pd_eagle_generated_tokens_total", ()] == 3
    assert found["pd_eagle_prompt_tokens_total", ()] == 3
    for phase in ("prefill", "first_delta"):
        assert found["pd_eagle_handoff_seconds_sum", (phase,)] == 0.1


def test_a_retry_is_an_event_and_its_phases_fail(spans: Spans) -> None:
    watch = spans.begin()
    watch.admitted(3)
    watch.attempt(PAIR, REQUEST)
    watch.aborted("worker_died")
    watch.again("retry", WorkerDied("prefill-0: killed"))
    watch.attempt(pair_of(Half("decode", 1)), REQUEST)
    watch.phase("first_delta", 0.1)
    watch.finished({})
    watch.end()
    assert spans.names() == ["queue", "prefill", "first_delta", "decode", "text_completion letters"]
    failed, whole = spans.named("prefill"), spans.named("text_completion letters")
    assert failed.status.status_code is StatusCode.ERROR
    assert attributes(failed)["error.type"] == "worker_died"
    (event,) = whole.events
    assert event.name == "pd_eagle.retry"
    assert dict(event.attributes or {}) == {
        "error.type": "worker_died",
        "exception.message": "prefill-0: killed",
    }
    assert whole.status.status_code is StatusCode.UNSET
    assert attributes(whole)["pd_eagle.attempts"] == 2
    assert attributes(spans.named("decode"))["pd_eagle.worker.decode"] == "decode-1"


def test_a_failure_is_said_on_the_request_and_on_the_phase_it_was_in(spans: Spans) -> None:
    watch = spans.begin()
    watch.failed(Overloaded("it waited too long"))
    watch.end()
    assert spans.names() == ["queue", "text_completion letters"]
    for span in spans.finished:
        assert attributes(span)["error.type"] == "overloaded"
        assert span.status.status_code is StatusCode.ERROR
    assert spans.finished[1].status.description == "it waited too long"


def test_a_client_that_leaves_is_no_error(spans: Spans) -> None:
    watch = spans.begin()
    watch.admitted(3)
    watch.attempt(PAIR, REQUEST)
    watch.aborted("closed")
    watch.end()
    assert {span.status.status_code for span in spans.finished} == {StatusCode.UNSET}
    assert attributes(spans.finished[-1])["pd_eagle.outcome"] == "cancelled"


def test_the_engines_get_the_requests_own_context(spans: Spans) -> None:
    watch = spans.begin()
    told = watch.attempt(PAIR, REQUEST)
    watch.end()
    context = context_of(spans.named("text_completion letters"))
    ids = f"{context.trace_id:032x}-{context.span_id:016x}"
    header = f"00-{ids}-{context.trace_flags:02x}"
    assert told.options.external_trace_header == {"traceparent": header}
    assert (told.rid, told.input_ids) == (REQUEST.rid, REQUEST.input_ids)
    assert REQUEST.options.external_trace_header is None


def test_the_parent_is_the_callers_current_span_or_the_header_it_gives(spans: Spans) -> None:
    with spans.tracing.tracer.start_as_current_span("caller") as caller:
        spans.begin().end()
    assert parent_id(spans.named("text_completion letters")) == caller.get_span_context().span_id
    given = Options(external_trace_header={"traceparent": TRACEPARENT})
    spans.begin(Request("other", [1], {}, given)).end()
    whole = spans.finished[-1]
    assert f"{parent_id(whole):016x}" == PARENT
    assert f"{context_of(whole).trace_id:032x}" == TRACE


def test_decode_may_be_heard_before_prefill(spans: Spans) -> None:
    watch = spans.begin()
    watch.admitted(3)
    watch.attempt(PAIR, REQUEST)
    watch.phase("first_delta", 0.1)  # decode was first: prefill says its end no more
    watch.end()
    assert spans.names() == ["queue", "prefill", "decode", "text_completion letters"]


# --- the server's span


async def _app(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/v1/completions":
        raise ZeroDivisionError("why")
    status = 503 if scope["path"] == "/v1/chat/completions" else 200
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def test_the_server_span_hangs_under_the_clients(spans: Spans) -> None:
    app = spans.tracing.over(_app)
    headers = {"traceparent": TRACEPARENT, "tracestate": "a=b"}
    await asgi.call(cast("Any", app), "POST", "/v1/chat/completions", headers=headers)
    (span,) = spans.finished
    assert (span.name, span.kind) == ("POST /v1/chat/completions", SpanKind.SERVER)
    assert f"{context_of(span).trace_id:032x}" == TRACE
    assert f"{parent_id(span):016x}" == PARENT
    assert context_of(span).trace_state.get("a") == "b"
    assert span.status.status_code is StatusCode.ERROR
    found = attributes(span)
    assert (found["http.response.status_code"], found["http.route"]) == (503, span.name[5:])


async def test_other_routes_are_not_traced_and_a_crash_is(spans: Spans) -> None:
    app = cast("Any", spans.tracing.over(_app))
    await asgi.call(app, "GET", "/v1/chat/completions")
    await asgi.call(app, "GET", "/metrics")
    assert spans.names() == []
    with pytest.raises(ZeroDivisionError):
        await asgi.call(app, "POST", "/v1/completions")
    assert [event.name for event in spans.finished[0].events] == ["exception"]


async def test_a_request_over_http_hangs_under_the_servers_span(spans: Spans) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        spans.begin().end()

    scope = {"type": "http", "path": "/v1/chat/completions", "method": "POST", "headers": []}
    await spans.tracing.over(app)(scope | {"scheme": "http"}, None, cast("Any", None))
    server = spans.named("POST /v1/chat/completions")
    assert parent_id(spans.named("chat letters")) == context_of(server).span_id
    assert server.parent is None


# --- on and off


def test_off_is_nothing_at_all() -> None:
    assert tracing.start(None) is None
    code = (
        "import sys, pd_eagle.requests.tracing as t, pd_eagle.requests.service\n"
        "assert t.start(None) is None\n"
        "print([m for m in sys.modules if m.startswith('opentelemetry')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_an_endpoint_without_the_package_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert tracing.start("http://127.0.0.1:9/v1/traces") is None
    (said,) = caplog.messages
    assert "http://127.0.0.1:9/v1/traces" in said
    assert said.endswith("wanted pip install 'pd-eagle[tracing]'")


def test_the_programs_own_provider_is_used(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", spans.provider)
    theirs = tracing.start(None)
    assert theirs is not None
    theirs.watching(spans.metrics, "letters")(REQUEST).end()
    theirs.shutdown()  # leaves what is not ours as it is
    answer(spans.begin())
    assert spans.names().count("text_completion letters") == 2


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "pd-eagle"),
        ({"OTEL_SERVICE_NAME": "mine"}, "mine"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=other"}, "other"),
    ],
)
def test_what_the_service_is_called(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], name: str
) -> None:
    for variable in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    found = tracing._resource("seattle").attributes
    assert (found["service.name"], found["cloud.region"]) == (name, "seattle")
