"""A collector of spans for tests: takes OTLP over HTTP, on a free port of this machine."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector:
    """Keeps every span that is sent to `url`; use it as a context manager."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, str]] = []
        self.paths: set[str] = set()
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector._take(self.path, self.rfile.read(int(self.headers["content-length"])))
                body = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _take(self, path: str, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        with self._changed:
            self.paths.add(path)
            for group in request.resource_spans:
                self.resources.append(
                    {pair.key: pair.value.string_value for pair in group.resource.attributes}
                )
                for scope in group.scope_spans:
                    self.spans.extend(scope.spans)
            self._changed.notify_all()

    def wait_for(self, there: Callable[[list[Span]], bool], timeout_s: float) -> list[Span]:
        """Return all spans once `there` is true of them."""
        with self._changed:
            assert self._changed.wait_for(lambda: there(self.spans), timeout_s), names(self.spans)
            return list(self.spans)


def names(spans: list[Span]) -> list[str]:
    return sorted(span.name for span in spans)


def attributes(span: Span) -> dict[str, Any]:
    """Return the attributes of `span` as Python has them."""
    found = {}
    for pair in span.attributes:
        kind = pair.value.WhichOneof("value")
        assert kind is not None
        found[pair.key] = getattr(pair.value, kind)
    return found
