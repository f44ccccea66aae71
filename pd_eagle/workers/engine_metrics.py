"""SGLang's own metrics: every process of an engine writes them to files, which the front reads.

Each start of a worker has its own folder, so that the values of a dead engine are not added to
those of its successor. It does not know what the metrics mean.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from prometheus_client import multiprocess, values
from prometheus_client.metrics_core import Metric

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_FOLDER = "metrics"
_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
#: What the documentation of SGLang's metrics (0.5.23) leaves out.
_NOTES = {
    "sglang:kv_transfer_latency_ms": (
        " Over NIXL this counts from the first chunk sent to the end, so it holds the computing of"
        " all later chunks; over Mooncake from the last chunk. pd_eagle_kv_handoff_seconds means"
        " the same over both."
    ),
}


def write_below(temp_dir: Path) -> None:
    """Make this process, and all that it starts, write their series into files below `temp_dir`."""
    folder = temp_dir / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[_VARIABLE] = str(folder)
    # prometheus_client (0.25) decides at its import, which a forked worker has from the front.
    values.ValueClass = values.get_value_class()  # type: ignore[no-untyped-call]


def collect(temp_dirs: Iterable[tuple[str, Path]]) -> Iterator[Metric]:
    """Yield all engines' series, those of one name together, with the label `worker`.

    `temp_dirs` are the workers' names and their folders. Reads files: milliseconds a worker.
    """
    families: dict[str, Metric] = {}
    for worker, temp_dir in temp_dirs:
        folder = temp_dir / _FOLDER
        if not folder.is_dir():
            continue  # it was just launched, or is gone
        for metric in _read(folder):
            family = families.setdefault(
                metric.name,
                Metric(
                    metric.name,
                    metric.documentation + _NOTES.get(metric.name, ""),
                    metric.type,
                    metric.unit,
                ),
            )
            for sample in metric.samples:
                family.samples.append(sample._replace(labels={**sample.labels, "worker": worker}))
    yield from families.values()


def _read(folder: Path) -> list[Metric]:
    collector = multiprocess.MultiProcessCollector(None, str(folder))  # type: ignore[no-untyped-call]
    return list(collector.collect())  # type: ignore[no-untyped-call]
