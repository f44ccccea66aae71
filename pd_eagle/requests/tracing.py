"""Spans of requests, through OpenTelemetry, which is imported only where tracing is on.

A request's span hangs under its caller's, and under it one a phase: queue, prefill, first_delta,
decode. While tracing is off nothing of OpenTelemetry is imported here and nothing is done for a
token. It knows neither where spans go nor what the engines make of the context handed to them.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec

from pd_eagle.requests.metrics import CANCELLED, FINISHED, RequestWatch
from pd_eagle.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping

    from opentelemetry.context import Context
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.trace import Span, Tracer, TracerProvider

    from pd_eagle.errors import PdEagleError
    from pd_eagle.messages import Request
    from pd_eagle.requests.metrics import Metrics
    from pd_eagle.requests.router import Pair

    Message = MutableMapping[str, Any]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[MutableMapping[str, Any], Any, Send], Awaitable[None]]

logger = logging.getLogger(__name__)

#: How long a stop may wait for a collector that does not answer.
_FLUSH_TIMEOUT_S = 5.0
#: The routes that are traced, with what OpenTelemetry's GenAI conventions call them.
_OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}
_OPERATION_KEY = "pd_eagle.operation"
#: Sampling parameters that the conventions have a name for.
_SAMPLING = {
    "max_new_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
}


def start(endpoint: str | None, region: str | None = None) -> Tracing | None:
    """Return what makes spans, None when tracing is off.

    They go to the provider that the program using this package has set, if it has, else by HTTP
    to `endpoint`, the whole URL. Starts a thread, so nothing may be forked from here afterwards.
    """
    if (provider := _provider_of_the_program()) is not None:
        return Tracing(provider)
    if endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        logger.warning(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set (%s), but no spans are sent: %s; wanted"
            " pip install 'pd-eagle[tracing]'",
            endpoint,
            error,
        )
        return None
    own = TracerProvider(resource=_resource(region))
    own.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    logger.info("spans go to %s", endpoint)
    return Tracing(own, own.shutdown)


def _provider_of_the_program() -> TracerProvider | None:
    # A program that has set one has imported both; importing them here would slow down the others.
    api, sdk = sys.modules.get("opentelemetry.trace"), sys.modules.get("opentelemetry.sdk.trace")
    if api is None or sdk is None:
        return None
    provider: TracerProvider = api.get_tracer_provider()
    return provider if isinstance(provider, sdk.TracerProvider) else None


def _resource(region: str | None) -> Resource:
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource

    found = Resource.create({"service.version": VERSION})
    own = {"cloud.region": region} if region else {}
    if str(found.attributes[SERVICE_NAME]).startswith("unknown_service"):
        own[SERVICE_NAME] = "pd-eagle"  # neither OTEL_SERVICE_NAME nor OTEL_RESOURCE_ATTRIBUTES
    return found.merge(Resource(own))


class Tracing:
    """Makes the spans of one front."""

    def __init__(self, provider: TracerProvider, stop: Callable[[], None] | None = None) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.tracer: Tracer = provider.get_tracer("pd_eagle", VERSION)
        self.headers = TraceContextTextMapPropagator()
        self._stop = stop

    def watching(self, metrics: Metrics, model: str) -> Callable[[Request], RequestWatch]:
        """Return what watches a request: as `metrics.begin` does, and with spans."""
        return lambda request: TracedWatch(metrics, self, model, request)

    def over(self, app: App) -> App:
        """Return `app` with a span around each request for tokens."""
        return _TracedApp(app, self)

    def shutdown(self) -> None:
        """Send what is left, for a few seconds at most; later calls do nothing."""
        stop, self._stop = self._stop, None
        if stop is None:
            return
        sending = threading.Thread(target=stop, name="pd_eagle tracing", daemon=True)
        sending.start()
        sending.join(_FLUSH_TIMEOUT_S)
        if sending.is_alive():
            logger.warning("spans are lost: nobody took them within %g s", _FLUSH_TIMEOUT_S)


class _TracedApp:
    """The server's span of a request, with the client's `traceparent` as its parent."""

    def __init__(self, app: App, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Send) -> None:
        from opentelemetry import context

        operation = _OPERATIONS.get(scope.get("path", ""))
        if operation is None or scope.get("method") != "POST":
            await self._app(scope, receive, send)
            return
        token = context.attach(context.set_value(_OPERATION_KEY, operation))
        try:
            await self._traced(scope, receive, send)
        finally:
            context.detach(token)

    async def _traced(self, scope: MutableMapping[str, Any], receive: Any, send: Send) -> None:
        from opentelemetry.trace import SpanKind

        with self._tracing.tracer.start_as_current_span(
            f"POST {scope['path']}",
            context=self._tracing.headers.extract(_trace_headers(scope)),
            kind=SpanKind.SERVER,
            attributes=dict(_http_attributes(scope)),
        ) as span:

            async def note_and_send(message: Message) -> None:
                if message["type"] == "http.response.start":
                    _note_status(span, message["status"])
                await send(message)

            await self._app(scope, receive, note_and_send)


def _trace_headers(scope: Mapping[str, Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        if name in (b"traceparent", b"tracestate"):  # the second may come in several lines
            found.setdefault(name.decode(), []).append(value.decode("latin-1"))
    return found


def _http_attributes(scope: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "http.request.method", scope["method"]
    yield "http.route", scope["path"]
    yield "url.path", scope["path"]
    yield "url.scheme", scope["scheme"]
    if scope.get("client"):
        yield "client.address", scope["client"][0]


def _note_status(span: Span, status: int) -> None:
    from opentelemetry.trace import StatusCode

    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_attribute("error.type", str(status))
        span.set_status(StatusCode.ERROR)


class TracedWatch(RequestWatch):
    """The times of one request as spans, beside the series."""

    __slots__ = (
        "_attempt",
        "_attempts",
        "_began_ns",
        "_context",
        "_error",
        "_finish_reason",
        "_phase",
        "_span",
        "_tokens",
        "_tracing",
    )

    def __init__(self, metrics: Metrics, tracing: Tracing, model: str, request: Request) -> None:
        from opentelemetry import context, trace

        super().__init__(metrics)
        self._tracing = tracing
        operation = str(context.get_value(_OPERATION_KEY) or "text_completion")
        self._span = tracing.tracer.start_span(
            f"{operation} {model}",
            context=self._parent(request),
            attributes=dict(_request_attributes(operation, model, request)),
        )
        self._context: Context = trace.set_span_in_context(self._span)
        self._attempt: dict[str, Any] = {}
        self._attempts = self._tokens = 0
        self._error = ""
        self._finish_reason: str | None = None
        self._open("queue")

    def _parent(self, request: Request) -> Context | None:
        # A Python caller's, as SGLang's Engine takes it.
        given = request.options.external_trace_header
        return self._tracing.headers.extract(given) if given else None

    # --- events

    def admitted(self, prompt_tokens: int) -> None:
        super().admitted(prompt_tokens)
        self._close()

    def attempt(self, pair: Pair, request: Request) -> Request:
        """Return `request` with the header under which the engines hang their own spans."""
        self._attempts += 1
        self._attempt = dict(_attempt_attributes(pair, request, self._attempts))
        self._open("prefill" if pair.prefill is not None else "first_delta")
        header: dict[str, str] = {}
        self._tracing.headers.inject(header, self._context)
        options = msgspec.structs.replace(request.options, external_trace_header=header)
        return msgspec.structs.replace(request, options=options)

    def phase(self, name: str, seconds: float) -> None:
        super().phase(name, seconds)
        if name == "kv_handoff":
            return  # a time across two phases, not one of its own
        self._close()
        self._open("first_delta" if name == "prefill" else "decode")

    def aborted(self, cause: str) -> None:
        super().aborted(cause)
        self._close("" if cause == "closed" else cause)

    def again(self, how: str, error: PdEagleError) -> None:
        super().again(how, error)
        self._span.add_event(
            f"pd_eagle.{how}", {"error.type": error.code, "exception.message": str(error)}
        )

    def delta(self, tokens: int) -> None:
        super().delta(tokens)
        self._tokens += tokens

    def finished(self, meta: Mapping[str, Any]) -> None:
        super().finished(meta)
        self._finish_reason = (meta.get("finish_reason") or {}).get("type")

    def failed(self, error: PdEagleError) -> None:
        super().failed(error)
        self._error = str(error)

    def end(self) -> None:
        super().end()
        failed = self.outcome not in (FINISHED, CANCELLED)
        self._close(self.outcome if failed else "")
        self._span.set_attributes(dict(self._end_attributes()))
        if failed:
            self._fail(self._span, self.outcome, self._error)
        self._span.end()

    def _end_attributes(self) -> Iterator[tuple[str, Any]]:
        yield "gen_ai.usage.output_tokens", self._tokens
        yield "pd_eagle.outcome", self.outcome
        yield "pd_eagle.attempts", self._attempts
        if self._finish_reason:
            yield "gen_ai.response.finish_reasons", [self._finish_reason]

    # --- one phase at a time

    def _open(self, name: str) -> None:
        self._phase: str | None = name
        self._began_ns = time.time_ns()

    def _close(self, error: str = "") -> None:
        if self._phase is None:
            return
        span = self._tracing.tracer.start_span(
            self._phase, self._context, attributes=self._attempt, start_time=self._began_ns
        )
        if error:
            self._fail(span, error)
        span.end()
        self._phase = None

    def _fail(self, span: Span, code: str, message: str = "") -> None:
        from opentelemetry.trace import StatusCode

        span.set_attribute("error.type", code)
        span.set_status(StatusCode.ERROR, message or None)


def _request_attributes(
    operation: str, model: str, request: Request
) -> Iterator[tuple[str, str | int | float]]:
    yield "gen_ai.operation.name", operation
    yield "gen_ai.provider.name", "sglang"
    yield "gen_ai.request.model", model
    yield "gen_ai.response.model", model
    yield "gen_ai.response.id", request.rid
    yield "gen_ai.usage.input_tokens", len(request.input_ids)
    for name, attribute in _SAMPLING.items():
        if isinstance(value := request.sampling_params.get(name), int | float):
            yield attribute, value


def _attempt_attributes(
    pair: Pair, request: Request, number: int
) -> Iterator[tuple[str, str | int]]:
    yield "pd_eagle.rid", request.rid
    yield "pd_eagle.attempt", number
    yield "pd_eagle.worker.decode", pair.decode.name
    if pair.prefill is not None:
        yield "pd_eagle.worker.prefill", pair.prefill.name
