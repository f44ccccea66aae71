"""All series as Prometheus reads them: of requests, of the service, and of the engines.

The state of workers and queue is read when `/metrics` is. It knows nothing of HTTP, and decides
nothing.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.exposition import ALLOWUTF8, UNDERSCORES

from pd_eagle.workers import engine_metrics
from pd_eagle.workers.worker_state import TRANSITIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from pd_eagle.requests.admission import Admission
    from pd_eagle.requests.metrics import Metrics
    from pd_eagle.requests.prefill_window import PrefillWindow, PrefillWindows
    from pd_eagle.workers.worker import Worker


class Watched(Protocol):
    """What is read for each exposition; `pd_eagle.requests.service.Service` is one."""

    admission: Admission
    windows: PrefillWindows
    retried: int
    resumed: int

    @property
    def status(self) -> str: ...
    @property
    def workers(self) -> Sequence[Worker]: ...
    def expected_speedup(self, worker: Worker) -> float | None: ...


class Exposition:
    """The series of one service."""

    def __init__(self, metrics: Metrics, watched: Watched) -> None:
        self.metrics = metrics
        self._watched = watched
        metrics.registry.register(_ServiceCollector(watched))

    def text(self, accept: str) -> tuple[bytes, str]:
        """Return all series, the engines' too, and the content type that `accept` asks for."""
        encode: Any
        encode, content_type = choose_encoder(accept)
        if getattr(encode, "keywords", {}).get("escaping") == UNDERSCORES:
            # prometheus_client 0.25 also takes the colon of `sglang:` for one to be escaped, in
            # samples but not in their types. All names here are legal: leave them as they are.
            encode = partial(encode, escaping=ALLOWUTF8)
        present = [
            (worker.name, worker.temp_dir)
            for worker in self._watched.workers
            if worker.temp_dir is not None
        ]
        everything = _Both(self.metrics.registry, engine_metrics.collect(present))
        return encode(everything), content_type


class _Both:
    """Our registry and the engines' series, as an encoder wants them."""

    def __init__(self, registry: CollectorRegistry, engines: Iterator[Metric]) -> None:
        self._registry = registry
        self._engines = engines

    def collect(self) -> Iterator[Metric]:
        yield from self._registry.collect()
        yield from self._engines


class _ServiceCollector:
    """The state of queue and workers."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched

    def collect(self) -> Iterator[Metric]:
        yield from self._queue()
        yield from self._workers()
        yield from self._sockets()

    def describe(self) -> list[Metric]:
        return []  # nothing to compare with other collectors' names: they are all ours

    def _queue(self) -> Iterator[Metric]:
        admission = self._watched.admission
        limits = admission.limits
        gauges = {
            "requests_running": (admission.inflight, "Requests that run."),
            "requests_running_limit": (limits.max_inflight, "The most that may run at once."),
            "requests_queued": (admission.queued, "Requests that wait for their turn."),
            "requests_queued_limit": (limits.max_queue, "The most that may wait."),
            "kv_tokens_running": (admission.tokens, "KV tokens that running requests may need."),
            "kv_tokens_limit": (limits.max_tokens, "KV tokens of all serving engines."),
        }
        for name, (value, help_text) in gauges.items():
            yield GaugeMetricFamily(f"pd_eagle_{name}", help_text, value=value)
        counters = {
            "retries": (self._watched.retried, "Attempts after the first, before any token."),
            "resumes": (self._watched.resumed, "Answers gone on with on another pair."),
        }
        for name, (value, help_text) in counters.items():
            yield CounterMetricFamily(f"pd_eagle_{name}", help_text, value=value)
        refused = CounterMetricFamily(
            "pd_eagle_admission_refusals", "Requests refused at the door.", labels=["reason"]
        )
        for reason, count in sorted(admission.refused.items()):
            refused.add_metric([reason], count)
        yield refused

    def _workers(self) -> Iterator[Metric]:
        state = GaugeMetricFamily(
            "pd_eagle_worker_state",
            "1 for the state a worker is in.",
            labels=["worker", "role", "state"],
        )
        for worker in self._watched.workers:
            for one in TRANSITIONS:
                state.add_metric([worker.name, worker.role, one], float(worker.state == one))
        yield state
        counters: dict[str, tuple[Callable[[Worker], float], str]] = {
            "restarts": (lambda worker: worker.restarts, "Times a worker came back."),
            "served_requests": (lambda worker: worker.served, "Requests that ended there."),
        }
        for name, (read, help_text) in counters.items():
            counter = CounterMetricFamily(f"pd_eagle_worker_{name}", help_text, labels=["worker"])
            for worker in self._watched.workers:
                counter.add_metric([worker.name], read(worker))
            yield counter
        yield from self._speculation()
        yield from self._prefill_windows()

    def _speculation(self) -> Iterator[Metric]:
        length = GaugeMetricFamily(
            "pd_eagle_spec_accept_length",
            "Tokens a verification yields with EAGLE, lately.",
            labels=["worker"],
        )
        rate = GaugeMetricFamily(
            "pd_eagle_spec_accept_ratio",
            "Drafted tokens that are accepted with EAGLE, lately, of those drafted.",
            labels=["worker"],
        )
        speedup = GaugeMetricFamily(
            "pd_eagle_spec_expected_speedup_ratio",
            "Tokens/s with EAGLE's drafts over those without, expected of their acceptance lately "
            "(costs of an H100; none on a CPU). Below 1 drafts slow this worker down.",
            labels=["worker"],
        )
        for worker in self._watched.workers:
            if (load := worker.load) is None:
                continue
            if (expected := self._watched.expected_speedup(worker)) is not None:
                speedup.add_metric([worker.name], expected)
            if load.spec_accept_length is not None:
                length.add_metric([worker.name], load.spec_accept_length)
            if load.spec_accept_rate is not None:
                rate.add_metric([worker.name], load.spec_accept_rate)
        yield from (length, rate, speedup)

    def _prefill_windows(self) -> Iterator[Metric]:
        gauges: dict[str, tuple[Callable[[PrefillWindow], float], str]] = {
            "outstanding_tokens": (
                lambda window: window.outstanding,
                "Prompt tokens sent to a prefill engine that it has not told the token of.",
            ),
            "held_requests": (
                lambda window: window.held,
                "Requests that wait in the front for room in a prefill engine.",
            ),
        }
        for name, (read, help_text) in gauges.items():
            gauge = GaugeMetricFamily(
                f"pd_eagle_prefill_{name}",
                f"{help_text} (PREFILL_WINDOW_TOKENS)",
                labels=["worker"],
            )
            for worker, window in self._watched.windows.by_worker.items():
                gauge.add_metric([worker], read(window))
            yield gauge

    def _sockets(self) -> Iterator[Metric]:
        for what in ("frames", "bytes"):
            counter = CounterMetricFamily(
                f"pd_eagle_worker_socket_{what}",
                f"{what.capitalize()} over a worker's socket, seen from the front.",
                labels=["worker", "direction"],
            )
            for worker in self._watched.workers:
                for direction in ("sent", "received"):
                    value = getattr(worker.traffic, f"{what}_{direction}")
                    counter.add_metric([worker.name, direction], value)
            yield counter
