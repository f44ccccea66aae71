"""What an operator sees and does, with real engines: metrics, a worker given up, a drain."""

from __future__ import annotations

import os
import signal
import threading
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pd_eagle import demo, serve
from pd_eagle.plan import engine_args
from tests import exposition
from tests.engine.serving import ServerProcess
from tests.otlp import Collector, attributes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from opentelemetry.proto.trace.v1.trace_pb2 import Span

QUESTION = {
    "messages": [{"role": "user", "content": "Count to ten."}],
    "max_tokens": 8,
    "ignore_eos": True,
}
STREAMS = 8
WORKERS = ["prefill-0", "decode-0", "decode-1"]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, collector: Collector
) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("operations") / "server.log"
    settings = {"DECODE_REPLICAS": "2", "RESTART_LIMIT": "2", "DRAIN_TIMEOUT_S": "120"}
    with ServerProcess(log, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **settings) as running:
        yield running


def scrape(server: ServerProcess) -> dict[tuple[str, str | None], float]:
    """Return all series by name and worker, other labels summed up; none may be there twice."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=60) as response:
        text = response.read().decode()
    seen: set[tuple[str, tuple[tuple[str, str], ...]]] = set()
    found: dict[tuple[str, str | None], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            whole = (sample.name, tuple(sorted(sample.labels.items())))
            assert whole not in seen, f"{whole} is there twice"
            seen.add(whole)
            key = (sample.name, sample.labels.get("worker"))
            found[key] = found.get(key, 0.0) + sample.value
    return found


def exposed(server: ServerProcess, accept: str) -> str:
    asked = urllib.request.Request(f"{server.url}/metrics", headers={"accept": accept})
    with urllib.request.urlopen(asked, timeout=60) as response:
        text: str = response.read().decode()
    assert text.rstrip().endswith("# EOF") is ("openmetrics" in accept)
    return text


def check_exposition(server: ServerProcess) -> None:
    """Both forms are read by Prometheus' parsers, promtool agrees, the dashboard finds all it
    asks for.
    """
    types = exposition.types_of(exposed(server, "application/openmetrics-text"), openmetrics=True)
    assert exposition.used_by_the_dashboard("sglang:") - types.keys() == set()
    text = exposed(server, "text/plain")
    types = exposition.types_of(text)
    assert exposition.used_by_the_dashboard("sglang:") - types.keys() == set()
    for expr in exposition.expressions():
        if "sglang:" in expr:
            assert exposition.misused(expr, types) == []
    assert exposition.promtool_complaints(text) in ([], None)


def ask(server: ServerProcess) -> None:
    status, answer = server.post("/v1/chat/completions", QUESTION)
    assert status == 200, answer


def restarted(server: ServerProcess, name: str, restarts: int) -> bool:
    worker = server.worker(name)
    return bool(worker["state"] == "ready" and worker["restarts"] == restarts)


def test_metrics_after_load_and_after_a_restart(server: ServerProcess) -> None:
    for _ in range(4):
        ask(server)
    before = scrape(server)
    check_exposition(server)
    assert before["pd_eagle_requests_total", None] == 4
    assert before["pd_eagle_generated_tokens_total", None] == 4 * 8
    for decode in WORKERS[1:]:  # every decode worker has generated, the prefill worker has not
        assert before["sglang:generation_tokens_total", decode] >= 2 * 8
    assert before["sglang:prompt_tokens_total", "prefill-0"] > 4 * 30

    os.kill(server.worker("decode-0")["pid"], signal.SIGKILL)
    server.wait_until(lambda: restarted(server, "decode-0", 1) or None, "restarted", 60)
    for _ in range(2):
        ask(server)
    after = scrape(server)
    assert after["pd_eagle_requests_total", None] == 6
    assert after["pd_eagle_worker_restarts_total", "decode-0"] == 1
    # What the dead engine had counted is not counted with the one that took its place.
    generated = "sglang:generation_tokens_total"
    assert 0 < after[generated, "decode-0"] < before[generated, "decode-0"]
    assert after[generated, "decode-1"] > before[generated, "decode-1"]
    workers = {worker for name, worker in after if name.startswith("sglang:")}
    assert workers == set(WORKERS)
    check_exposition(server)


def test_promtool_was_there(server: ServerProcess) -> None:
    if exposition.promtool_complaints(exposed(server, "text/plain")) is None:
        pytest.skip("promtool is not on PATH: Debian has it in the package prometheus")


def children(spans: list[Span], parent: Span) -> list[Span]:
    return [span for span in spans if span.parent_span_id == parent.span_id]


def test_the_engines_spans_hang_under_ours(server: ServerProcess, collector: Collector) -> None:
    if not engine_args.installed_tracing():
        pytest.skip("SGLang's spans need the package opentelemetry-exporter-otlp-proto-grpc")
    ask(server)
    engines = ("prefill Req", "decode Req")

    def of_one_request(spans: list[Span]) -> dict[str, Span]:
        for span in spans:
            if span.name == f"chat {demo.NAME}":
                below = {child.name[:-9]: child for child in children(spans, span)}
                if set(engines) <= below.keys():
                    return below
        return {}

    spans = collector.wait_for(lambda spans: bool(of_one_request(spans)), 30)
    found = of_one_request(spans)
    rid = attributes(found["prefill Req"])["rid"]
    assert attributes(found["decode Req"])["rid"] == rid
    assert attributes(found["decode Req"])["bootstrap_room"]
    # Of each engine its tokenizer manager and its scheduler, and what they did.
    for name in engines:
        assert children(spans, found[name])


def test_a_worker_that_dies_at_every_start_is_given_up(server: ServerProcess) -> None:
    killed: set[int] = set()

    def kill_until_given_up() -> dict[str, Any] | None:
        worker = server.worker("decode-1")
        if worker["state"] == "failed":
            return worker
        if worker["pid"] and worker["pid"] not in killed:
            killed.add(worker["pid"])
            os.kill(worker["pid"], signal.SIGKILL)
        return None

    given_up = server.wait_until(kill_until_given_up, "given up", 300)
    assert given_up["last_error"].startswith("given up after 2 restarts within 300 s")
    assert len(killed) == 3
    status, health = server.get("/health")
    assert (status, health["status"]) == (200, "degraded")
    for _ in range(3):
        ask(server)
    assert scrape(server)["pd_eagle_worker_state", "decode-1"] == 1


class Stream(threading.Thread):
    """Reads one stream to its end."""

    def __init__(self, server: ServerProcess, tokens: int) -> None:
        super().__init__(daemon=True)
        self._client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
        self._tokens = tokens
        self.begun = threading.Event()
        self.finish_reason: str | None = None
        self.chunks = 0
        self.error: openai.APIError | None = None

    def run(self) -> None:
        try:
            for chunk in self._client.chat.completions.create(
                model=demo.NAME,
                messages=[{"role": "user", "content": "Count to a thousand."}],
                max_tokens=self._tokens,
                stream=True,
                extra_body={"ignore_eos": True},
            ):
                self.chunks += 1
                self.begun.set()
                self.finish_reason = chunk.choices[0].finish_reason or self.finish_reason
        except openai.APIError as error:
            self.error = error


def streaming(server: ServerProcess, count: int, tokens: int) -> list[Stream]:
    streams = [Stream(server, tokens) for _ in range(count)]
    for stream in streams:
        stream.start()
    assert all(stream.begun.wait(60) for stream in streams)
    return streams


def test_sigterm_lets_streams_finish(server: ServerProcess) -> None:
    streams = streaming(server, STREAMS, 80)
    server.process.send_signal(signal.SIGTERM)
    status, refused = server.wait_until(lambda: _refused(server), "draining", 10)
    assert (status, refused["error"]["code"]) == (503, "not_serving")
    assert server.get("/health/ready")[0] == 503
    assert server.get("/health/live")[0] == 200
    for stream in streams:
        stream.join(150)
        assert (stream.error, stream.finish_reason) == (None, "length")
    assert server.process.wait(30) == serve.EXIT_OK


def _refused(server: ServerProcess) -> tuple[int, Any] | None:
    answer = server.post("/v1/chat/completions", QUESTION)
    return answer if answer[0] != 200 else None


def test_what_outlives_the_drain_is_cut_off(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "server.log", DRAIN_TIMEOUT_S="2") as server:
        (stream,) = streaming(server, 1, 2000)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        stream.join(30)
        assert stream.error is not None
        assert "stopping" in str(stream.error)
        assert time.monotonic() - began > 2
        assert stream.chunks > 1
        assert server.process.wait(30) == serve.EXIT_CUT_OFF
