"""Our own series and the engines', as Prometheus' own parser reads them."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse

from pd_eagle.messages import Load, Request
from pd_eagle.requests.admission import Admission, Limits
from pd_eagle.requests.exposition import Exposition
from pd_eagle.requests.metrics import Metrics, Times
from pd_eagle.requests.prefill_window import PrefillWindow, PrefillWindows
from pd_eagle.workers.channel import Traffic

if TYPE_CHECKING:
    from pathlib import Path

    from pd_eagle.requests.exposition import Watched

#: What an engine's process does, with one counter, one gauge and one histogram.
ENGINE = """
import sys
from pathlib import Path
import prometheus_client  # a forked worker has it from the front, before the folder is known
from pd_eagle.workers import engine_metrics
engine_metrics.write_below(Path(sys.argv[1]))
prometheus_client.Counter("sglang:prompt_tokens", "Prompt tokens.", ["model_name"]).labels("m").inc(
    float(sys.argv[2])
)
prometheus_client.Gauge("sglang:running", "Running.", multiprocess_mode="mostrecent").set(1)
prometheus_client.Histogram("sglang:seconds", "Seconds.", buckets=(1, 2)).observe(1.5)
"""


def engine(temp_dir: Path, tokens: int) -> None:
    subprocess.run([sys.executable, "-c", ENGINE, str(temp_dir), str(tokens)], check=True)


def worker(name: str, temp_dir: Path | None = None, load: Load | None = None) -> SimpleNamespace:
    return SimpleNamespace(
        name=name,
        role=name.partition("-")[0],
        state="ready",
        restarts=2,
        served=7,
        load=load,
        temp_dir=temp_dir,
        traffic=Traffic(frames_sent=1, frames_received=2, bytes_sent=3, bytes_received=4),
    )


def watched(*workers: SimpleNamespace) -> SimpleNamespace:
    admission = Admission(Limits(4, 100, 8, 5.0))
    windows = PrefillWindows(100)
    windows.by_worker["prefill-0"] = PrefillWindow(100, lambda: 0.0, outstanding=70)
    return SimpleNamespace(
        admission=admission,
        retried=1,
        resumed=2,
        status="ready",
        workers=list(workers),
        windows=windows,
        expected_speedup=lambda worker: (
            0.5 if worker.load and worker.load.spec_accept_length else None
        ),
    )


def series(exposition: Exposition) -> dict[tuple[str, tuple[str, ...]], float]:
    """Return every sample, by its name and the values of its labels in order of their names."""
    text = exposition.text("")[0].decode()
    found: dict[tuple[str, tuple[str, ...]], float] = {}
    for family in parse(text):
        for sample in family.samples:
            key = (sample.name, tuple(value for _, value in sorted(sample.labels.items())))
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


def exposition_of(*workers: SimpleNamespace) -> Exposition:
    return Exposition(Metrics(), cast("Watched", watched(*workers)))


def test_a_request_leaves_its_times_and_its_outcome() -> None:
    exposition = exposition_of()
    request = Request("r", [0], {})
    watch = exposition.metrics.begin(request)
    watch.admitted(prompt_tokens=5)
    watch.delta(1)
    watch.delta(3)
    watch.phase("prefill", 0.02)
    watch.finished({})
    watch.end()
    cancelled = exposition.metrics.begin(request)
    cancelled.aborted("worker_died")
    cancelled.end()
    found = series(exposition)
    assert found["pd_eagle_requests_total", ("finished",)] == 1
    assert found["pd_eagle_requests_total", ("cancelled",)] == 1
    assert found["pd_eagle_prompt_tokens_total", ()] == 5
    assert found["pd_eagle_generated_tokens_total", ()] == 4
    for name, count in (
        ("queue", 1),
        ("time_to_first_token", 1),
        ("inter_token", 1),
        ("request", 2),
    ):
        assert found[f"pd_eagle_{name}_seconds_count", ()] == count
    assert found["pd_eagle_handoff_seconds_sum", ("prefill",)] == 0.02
    assert found["pd_eagle_aborts_total", ("worker_died",)] == 1


BOUNDS = (0.001, 0.01, 0.1)


def told(times: Times) -> tuple[list[float], float]:
    """Return what the buckets hold up to each bound, and the sum."""
    family = HistogramMetricFamily("x_seconds", "", labels=())
    times.add_to(family)
    buckets = [s.value for s in family.samples if s.name == "x_seconds_bucket"]
    return buckets, next(s.value for s in family.samples if s.name == "x_seconds_sum")


@given(st.lists(st.one_of(st.sampled_from(BOUNDS), st.floats(0, 1)), max_size=60), st.integers(1))
def test_times_fall_into_prometheus_buckets(seconds: list[float], at_least: int) -> None:
    times = Times(BOUNDS)
    for one in seconds:
        times.observe(one)
        times.aggregate(at_least)
    buckets, total = told(times)
    assert buckets == [sum(one <= bound for one in seconds) for bound in (*BOUNDS, math.inf)]
    assert total == pytest.approx(sum(seconds))
    assert told(times) == (buckets, total)  # asked again, nothing is counted twice


def test_no_time_is_lost_between_threads() -> None:
    times, count = Times(BOUNDS), 200_000
    noting = threading.Thread(target=lambda: [times.observe(0.05) for _ in range(count)])
    asking = [threading.Thread(target=lambda: [told(times) for _ in range(200)]) for _ in range(2)]
    for thread in (noting, *asking):
        thread.start()
    for thread in (noting, *asking):
        thread.join()
    assert told(times)[0] == [0, 0, count, count]


def test_a_list_of_times_stays_short_where_nobody_asks() -> None:
    exposition = exposition_of()
    for _ in range(100):
        watch = exposition.metrics.begin(Request("r", [0], {}))
        for _ in range(500):
            watch.delta(1)
        watch.end()
        assert len(exposition.metrics.gap._observed) < 5000
    assert series(exposition)["pd_eagle_inter_token_seconds_count", ()] == 100 * 499


def test_the_plan_and_the_queue_are_read_when_asked() -> None:
    load = Load(snapshot_at=0.0, spec_accept_length=2.5, spec_accept_rate=0.75)
    exposition = exposition_of(worker("prefill-0"), worker("decode-0", load=load))
    exposition._watched.admission.refused["queue_full"] += 3
    found = series(exposition)
    assert found["pd_eagle_requests_running_limit", ()] == 4
    assert found["pd_eagle_requests_queued", ()] == 0
    assert found["pd_eagle_kv_tokens_limit", ()] == 100
    assert found["pd_eagle_admission_refusals_total", ("queue_full",)] == 3
    assert (found["pd_eagle_retries_total", ()], found["pd_eagle_resumes_total", ()]) == (1, 2)
    assert found["pd_eagle_worker_state", ("decode", "ready", "decode-0")] == 1
    assert found["pd_eagle_worker_state", ("decode", "failed", "decode-0")] == 0
    assert found["pd_eagle_worker_restarts_total", ("prefill-0",)] == 2
    assert found["pd_eagle_spec_accept_length", ("decode-0",)] == 2.5
    assert found["pd_eagle_spec_accept_ratio", ("decode-0",)] == 0.75
    assert ("pd_eagle_spec_accept_length", ("prefill-0",)) not in found
    assert found["pd_eagle_spec_expected_speedup_ratio", ("decode-0",)] == 0.5
    assert ("pd_eagle_spec_expected_speedup_ratio", ("prefill-0",)) not in found
    assert found["pd_eagle_prefill_outstanding_tokens", ("prefill-0",)] == 70
    assert found["pd_eagle_prefill_held_requests", ("prefill-0",)] == 0
    assert found["pd_eagle_worker_socket_bytes_total", ("received", "prefill-0")] == 4


def test_engines_are_told_apart_and_a_dead_one_is_not_counted(tmp_path: Path) -> None:
    for name, tokens in (("decode-0", 3), ("decode-1", 5), ("dead", 9999)):
        engine(tmp_path / name, tokens)
    engine(tmp_path / "decode-0", 4)  # another process of the same engine
    present = [worker(name, tmp_path / name) for name in ("decode-0", "decode-1", "just-launched")]
    found = series(exposition_of(*present, worker("gone")))
    assert found["sglang:prompt_tokens_total", ("m", "decode-0")] == 7
    assert found["sglang:prompt_tokens_total", ("m", "decode-1")] == 5
    assert found["sglang:running", ("decode-0",)] == 1
    assert found["sglang:seconds_bucket", ("2.0", "decode-0")] == 2
    assert 9999 not in found.values()


def test_sglangs_transfer_latency_says_what_it_does_not_mean(tmp_path: Path) -> None:
    other = ENGINE.replace("sglang:seconds", "sglang:kv_transfer_latency_ms")
    subprocess.run([sys.executable, "-c", other, str(tmp_path), "1"], check=True)
    text = exposition_of(worker("prefill-0", tmp_path)).text("")[0].decode()
    told = next(line for line in text.splitlines() if "HELP sglang:kv_transfer" in line)
    assert "Over NIXL this counts from the first chunk sent" in told
    assert "pd_eagle_kv_handoff_seconds" in told


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "text/plain",
        "text/plain;version=1.0.0;escaping=underscores",
        "application/openmetrics-text",
        "application/openmetrics-text;version=1.0.0",
        "application/openmetrics-text;version=1.0.0;escaping=underscores",
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8",
    ],
)
def test_both_forms_can_be_parsed(tmp_path: Path, accept: str) -> None:
    engine(tmp_path, 1)
    body, content_type = exposition_of(worker("decode-0", tmp_path)).text(accept)
    openmetrics = "openmetrics" in content_type
    assert openmetrics is ("openmetrics" in accept)
    families = list((parse_openmetrics if openmetrics else parse)(body.decode()))
    assert {"pd_eagle_worker_state", "sglang:running"} <= {family.name for family in families}
    samples = {sample.name for family in families for sample in family.samples}
    assert {"sglang:running", "sglang:prompt_tokens_total", "sglang:seconds_sum"} <= samples
    assert "PROMETHEUS_MULTIPROC_DIR" not in os.environ
