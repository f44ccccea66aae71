"""Open requests: events go to their request's sink, none after a terminal one or an abort."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pd_eagle.messages import Delta, Failed
from pd_eagle.workers import open_requests
from pd_eagle.workers.open_requests import OpenRequests

if TYPE_CHECKING:
    import pytest

    from pd_eagle.messages import Event


def delta(rid: str, *, finished: bool = False) -> Delta:
    return Delta(rid, "x", [1], {}, finished)


def test_a_terminal_event_closes_its_request_alone() -> None:
    requests = OpenRequests()
    heard: list[Event] = []
    for rid in "abc":
        requests.add(rid, heard.append)
    events: list[Event] = [delta("a"), delta("a", finished=True), Failed("b", "engine_error", "no")]
    for event in events:
        requests.deliver(event)
    requests.deliver(delta("a"))
    assert heard == events
    assert (len(requests), requests.rids) == (1, ("c",))


def test_nothing_comes_after_an_abort() -> None:
    requests = OpenRequests()
    heard: list[Event] = []
    requests.add("a", heard.append)
    assert requests.abort("a")
    assert not requests.abort("a")
    requests.deliver(delta("a"))
    assert heard == []


def test_an_aborted_request_counts_as_in_the_engine_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests = OpenRequests()
    for rid in "ab":
        requests.add(rid, lambda event: None)
    requests.abort("a")
    assert (len(requests), requests.rids) == (1, ("b", "a"))
    monkeypatch.setattr(open_requests, "_ABORT_TAKES_S", -1.0)
    assert requests.rids == ("b",)


def test_a_new_engine_has_none_of_the_aborted() -> None:
    requests = OpenRequests()
    requests.add("a", lambda event: None)
    requests.abort("a")
    requests.forget_aborted()
    assert requests.rids == ()


def test_all_are_closed_at_once() -> None:
    requests = OpenRequests()
    for rid in "ab":
        requests.add(rid, lambda event: None)
    assert list(requests.close_all()) == ["a", "b"]
    assert (len(requests), requests.close_all()) == (0, {})
