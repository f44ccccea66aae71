"""The Grafana dashboard: its form, and that every series it asks for is one that we make."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest

from pd_eagle.messages import Load, Request
from tests import exposition
from tests.unit.test_metrics import exposition_of, worker

if TYPE_CHECKING:
    from pd_eagle.requests.exposition import Exposition

PANELS: list[dict[str, Any]] = exposition.dashboard()["panels"]


def with_everything() -> Exposition:
    """Return series of a service to which everything has happened."""
    series = exposition_of(
        worker("decode-0", load=Load(0.0, spec_accept_length=2, spec_accept_rate=1))
    )
    series._watched.admission.refused["queue_full"] += 1
    watch = series.metrics.begin(Request("r", [0], {}))
    watch.admitted(1)
    watch.aborted("worker_died")
    watch.end()
    return series


def test_it_is_of_a_form_that_grafana_takes() -> None:
    board = exposition.dashboard()
    assert board["schemaVersion"] >= 39
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == (
        "datasource",
        "prometheus",
    )
    assert {panel["type"] for panel in PANELS} == {"row", "timeseries", "state-timeline"}
    for panel in PANELS:
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["title"]
            assert panel["description"]
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_panels_have_their_own_ids_and_places() -> None:
    ids = [panel["id"] for panel in PANELS]
    assert len(set(ids)) == len(ids)
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
    for one, other in itertools.combinations(PANELS, 2):
        assert not overlap(one["gridPos"], other["gridPos"]), (one["title"], other["title"])


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return all(
        one[at] < other[at] + other[size] and other[at] < one[at] + one[size]
        for at, size in (("x", "w"), ("y", "h"))
    )


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text"])
def test_every_series_of_ours_exists_and_is_used_as_what_it_is(accept: str) -> None:
    text = with_everything().text(accept)[0].decode()
    types = exposition.types_of(text, openmetrics="openmetrics" in accept)
    assert exposition.used_by_the_dashboard("pd_eagle_") - types.keys() == set()
    for expr in exposition.expressions():
        if "sglang:" not in expr:
            assert exposition.misused(expr, types) == []


def test_nothing_that_we_count_is_left_out() -> None:
    """Whoever adds a series says on the dashboard what it is good for."""
    types = exposition.types_of(with_everything().text("")[0].decode())
    used = exposition.used_by_the_dashboard("pd_eagle_")
    families = {name for name in types if not name.endswith(("_sum", "_count", "_created"))}
    assert families - used == set()


TYPES = {"a_total": "counter", "sglang:g": "gauge", "sglang:h_bucket": "histogram"} | {
    "sglang:c_total": "counter"
}


@pytest.mark.parametrize(
    ("expr", "right"),
    [
        ("sglang:g{}", True),
        ("rate(sglang:g{}[1m])", False),
        ("sum(rate(sglang:c_total{}[1m]))", True),
        ("sglang:c_total{}", False),
        ("histogram_quantile(0.5, sum by (le) (rate(sglang:h_bucket{}[1m])))", True),
        ("histogram_quantile(0.5, sum by (x) (rate(sglang:h_bucket{}[1m])))", False),
        ("histogram_quantile(0.5, sglang:h_bucket{})", False),
        ("histogram_quantile(0.5, sum by (le) (rate(sglang:c_total{}[1m])))", False),
        ("rate(sglang:h_bucket{}[1m])", False),
        ("sglang:unknown{}", False),
    ],
)
def test_misuse_is_found(expr: str, right: bool) -> None:
    assert (exposition.misused(expr, TYPES) == []) is right


def test_promtool_has_nothing_to_say() -> None:
    complaints = exposition.promtool_complaints(with_everything().text("")[0].decode())
    if complaints is None:
        pytest.skip("promtool is not on PATH: Debian has it in the package prometheus")
    assert complaints == []
