"""What happens to requests, counted as it happens, and its series through prometheus_client.

It knows neither the service nor HTTP, and decides nothing.
"""

from __future__ import annotations

from itertools import accumulate
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from prometheus_client.metrics_core import Metric

    from pd_eagle.errors import PdEagleError
    from pd_eagle.messages import Request
    from pd_eagle.requests.router import Pair

_SHORT_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LONG_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 600)

#: Observations that are aggregated at the end of a request: a tenth of a millisecond's work.
_AGGREGATE_AT = 4096

#: Outcomes that are not errors' codes.
FINISHED, CANCELLED = "finished", "cancelled"


class Metrics:
    """Counts and times of all requests of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter("requests", "Requests by how they ended.", "outcome")
        self._aborts = self._counter(
            "aborts", "Attempts that were ended in both engines before their end.", "cause"
        )
        self.prompt_tokens = self.generated_tokens = 0
        self.queue, self.first, self.whole = Times(_LONG_S), Times(_LONG_S), Times(_LONG_S)
        self.gap = Times(_SHORT_S)
        self.phases = {phase: Times(_LONG_S) for phase in ("prefill", "first_delta")}
        self.phases["kv_handoff"] = Times(_SHORT_S)
        self.registry.register(_RequestCollector(self))

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"pd_eagle_{name}", help_text, labels, registry=self.registry)

    def begin(self, request: Request) -> RequestWatch:
        return RequestWatch(self)

    def aggregate(self) -> None:
        """Keep the lists of observations short, also where `/metrics` is never read."""
        for times in (self.queue, self.first, self.gap, self.whole, *self.phases.values()):
            times.aggregate(_AGGREGATE_AT)


class Times:
    """A histogram that is observed at every token: by the event loop's thread alone, into a list.

    The list is aggregated into buckets in bulk, from any thread: that is cheaper than to look for
    the bucket at every token, and needs no lock there.
    """

    __slots__ = ("_aggregating", "_bounds", "_counts", "_observed", "_sum", "observe")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._observed: list[float] = []
        self._aggregating = Lock()
        self.observe: Callable[[float], None] = self._observed.append  # seconds

    def aggregate(self, at_least: int = 1) -> None:
        """Move what was observed into the buckets, if it is so many."""
        if len(self._observed) < at_least:
            return
        import numpy as np  # not for those who import this module for its names alone

        with self._aggregating:
            observed = np.array(self._observed)
            del self._observed[: len(observed)]  # what came meanwhile is behind them
            places = np.searchsorted(self._bounds, observed)
            more = np.bincount(places, minlength=len(self._counts)).tolist()
            self._counts = [count + new for count, new in zip(self._counts, more, strict=True)]
            self._sum += float(observed.sum())

    def add_to(self, family: HistogramMetricFamily, *labels: str) -> None:
        self.aggregate()
        with self._aggregating:
            counts, seconds = self._counts, self._sum
        bounds = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        family.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), seconds)


class RequestWatch:
    """What happens to one request, from acceptance to its end; `tracing` extends it."""

    __slots__ = ("_accepted_at", "_last_at", "_metrics", "_observe", "outcome")

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._accepted_at = self._last_at = monotonic()
        self._observe = metrics.first.observe  # then the gaps
        self.outcome = CANCELLED  # unless it finishes or fails

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
        self._metrics.aggregate()


class _RequestCollector:
    """What was counted for every request and token, as Prometheus wants it."""

    def __init__(self, counted: Metrics) -> None:
        self._counted = counted

    def describe(self) -> list[Metric]:
        return []  # nothing to compare with other collectors' names: they are all ours

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
