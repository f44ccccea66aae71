"""Our own series, through prometheus_client: what happened to requests, and how the plan is.

Events are counted when they happen; what a worker or the queue is like is read when somebody asks.
It knows nothing of HTTP, and decides nothing.
"""

from __future__ import annotations

from functools import partial
from itertools import accumulate
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.exposition import ALLOWUTF8, UNDERSCORES

from pd_eagle.workers import engine_metrics
from pd_eagle.workers.worker import TRANSITIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from prometheus_client.metrics_core import Metric

    from pd_eagle.errors import PdEagleError
    from pd_eagle.messages import Request
    from pd_eagle.requests.admission import Admission
    from pd_eagle.requests.prefill_window import PrefillWindow, PrefillWindows
    from pd_eagle.requests.router import Pair
    from pd_eagle.workers.worker import Worker

_SHORT_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LONG_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 600)

#: Times noted and not yet counted off, at the end of a request: a tenth of a millisecond's work.
_SETTLE_AT = 4096

#: Outcomes that are not errors' codes.
FINISHED, CANCELLED = "finished", "cancelled"


class Watched(Protocol):
    """What is read when somebody asks; `pd_eagle.requests.service.Service` is one."""

    admission: Admission
    windows: PrefillWindows
    retried: int
    resumed: int

    @property
    def status(self) -> str: ...
    @property
    def workers(self) -> Sequence[Worker]: ...
    def expected_speedup(self, worker: Worker) -> float | None: ...


class Metrics:
    """The series of one service."""

    def __init__(self, watched: Watched) -> None:
        self.registry = CollectorRegistry()
        self._watched = watched
        self._requests = self._counter("requests", "Requests by how they ended.", "outcome")
        self._aborts = self._counter(
            "aborts", "Attempts that were ended in both engines before their end.", "cause"
        )
        self.prompt_tokens = self.generated_tokens = 0
        self.queue, self.first, self.whole = Times(_LONG_S), Times(_LONG_S), Times(_LONG_S)
        self.gap = Times(_SHORT_S)
        self.phases = {phase: Times(_LONG_S) for phase in ("prefill", "first_delta")}
        self.phases["kv_handoff"] = Times(_SHORT_S)
        self.registry.register(_Requests(self))
        self.registry.register(_Plan(watched))

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"pd_eagle_{name}", help_text, labels, registry=self.registry)

    # --- events

    def begin(self, request: Request) -> RequestWatch:
        return RequestWatch(self)

    def settle(self) -> None:
        """Keep short what is still to be counted off, also where nobody asks for the series."""
        for times in (self.queue, self.first, self.gap, self.whole, *self.phases.values()):
            times.settle(_SETTLE_AT)

    # --- the whole

    def exposition(self, accept: str) -> tuple[bytes, str]:
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
        everything = _Both(self.registry, engine_metrics.collect(present))
        return encode(everything), content_type


class Times:
    """A histogram for what is noted at every token: by the event loop's thread alone, into a list.

    The list is counted off in bulk, from any thread: that is cheaper than to look for the bucket at
    every token, and needs no lock there.
    """

    __slots__ = ("_bounds", "_counts", "_noted", "_settling", "_sum", "observe")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._noted: list[float] = []
        self._settling = Lock()
        self.observe: Callable[[float], None] = self._noted.append  # seconds

    def settle(self, at_least: int = 1) -> None:
        """Count off what was noted, if it is so many."""
        if len(self._noted) < at_least:
            return
        import numpy as np  # what imports this module for its names need not wait for it

        with self._settling:
            noted = np.array(self._noted)
            del self._noted[: len(noted)]  # what came meanwhile stands behind
            places = np.searchsorted(self._bounds, noted)
            more = np.bincount(places, minlength=len(self._counts)).tolist()
            self._counts = [count + new for count, new in zip(self._counts, more, strict=True)]
            self._sum += float(noted.sum())

    def add_to(self, family: HistogramMetricFamily, *labels: str) -> None:
        self.settle()
        with self._settling:
            counts, seconds = self._counts, self._sum
        bounds = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        family.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), seconds)


class RequestWatch:
    """What happens to one request, from acceptance to its end; `tracing` hears it too."""

    __slots__ = ("_accepted_at", "_last_at", "_metrics", "_observe", "outcome")

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._accepted_at = self._last_at = monotonic()
        self._observe = metrics.first.observe  # then the gaps
        self.outcome = CANCELLED  # unless somebody says otherwise

    def admitted(self, prompt_tokens: int) -> None:
        self._metrics.queue.observe(monotonic() - self._accepted_at)
        self._metrics.prompt_tokens += prompt_tokens

    def attempt(self, pair: Pair, request: Request) -> Request:
        """Return `request` as `pair` is to get it."""
        return request

    def phase(self, name: str, seconds: float) -> None:
        """Note how long a part of a handoff took."""
        self._metrics.phases[name].observe(seconds)

    def aborted(self, cause: str) -> None:
        self._metrics._aborts.labels(cause).inc()

    def again(self, how: str, error: PdEagleError) -> None:
        """Note that `error` ended an attempt and another follows: a retry, or a resume."""

    def delta(self, tokens: int) -> None:
        now, metrics = monotonic(), self._metrics
        self._observe(now - self._last_at)
        self._last_at, self._observe = now, metrics.gap.observe
        metrics.generated_tokens += tokens

    def finished(self, meta: Mapping[str, Any]) -> None:
        self.outcome = FINISHED

    def failed(self, error: PdEagleError) -> None:
        self.outcome = error.code

    def end(self) -> None:
        self._metrics._requests.labels(self.outcome).inc()
        self._metrics.whole.observe(monotonic() - self._accepted_at)
        self._metrics.settle()


class _Both:
    """Our registry and the engines' series, as an encoder wants them."""

    def __init__(self, registry: CollectorRegistry, engines: Iterator[Metric]) -> None:
        self._registry = registry
        self._engines = engines

    def collect(self) -> Iterator[Metric]:
        yield from self._registry.collect()
        yield from self._engines


class _Requests:
    """What was counted for every request and token, as Prometheus wants it."""

    def __init__(self, counted: Metrics) -> None:
        self._counted = counted

    def describe(self) -> list[Metric]:
        return []  # as in _Plan

    def collect(self) -> Iterator[Metric]:
        counted = self._counted
        counters = {
            "prompt_tokens": (counted.prompt_tokens, "Tokens of admitted prompts."),
            "generated_tokens": (counted.generated_tokens, "Tokens given to clients."),
        }
        for name, (value, help_text) in counters.items():
            yield CounterMetricFamily(f"pd_eagle_{name}", help_text, value=value)
        histograms = {
            "queue": (counted.queue, "From acceptance to admission."),
            "time_to_first_token": (counted.first, "From acceptance to the first token."),
            "inter_token": (counted.gap, "Between two additions to an answer."),
            "request": (counted.whole, "From acceptance to the end."),
        }
        for name, (times, help_text) in histograms.items():
            family = HistogramMetricFamily(f"pd_eagle_{name}_seconds", help_text, labels=())
            times.add_to(family)
            yield family
        yield self._handoff()
        kv_handoff = HistogramMetricFamily(
            "pd_eagle_kv_handoff_seconds",
            "From the end of prefill's last step to decode's first addition: sending the KV, and "
            "decode's queue and first step. The same over every transfer backend.",
            labels=(),
        )
        self._counted.phases["kv_handoff"].add_to(kv_handoff)
        yield kv_handoff

    def _handoff(self) -> Metric:
        family = HistogramMetricFamily(
            "pd_eagle_handoff_seconds",
            "Parts of a handoff: prefill (submitted until the KV has been sent), first_delta "
            "(from then until decode's first addition).",
            labels=["phase"],
        )
        for phase in ("prefill", "first_delta"):
            self._counted.phases[phase].add_to(family, phase)
        return family


class _Plan:
    """What is read of queue and workers when somebody asks."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched

    def collect(self) -> Iterator[Metric]:
        yield from self._queue()
        yield from self._workers()
        yield from self._sockets()

    def describe(self) -> list[Metric]:
        return []  # nothing to compare with others' names: they are all ours

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
