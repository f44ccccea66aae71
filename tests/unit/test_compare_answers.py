"""Two answers compared: what counts as equal, what a stream adds up to, what a reason covers."""

from __future__ import annotations

import json
import re
from typing import Any

from benchmarks.compare_answers import Answer, Difference, Reason, answer, differences
from benchmarks.compare_reasons import REASONS
from benchmarks.compare_requests import FATAL, cases


def stream(*events: dict[str, Any]) -> Answer:
    lines = [f"data: {json.dumps(event)}" for event in events] + ["data: [DONE]"]
    return answer(200, "text/event-stream; charset=utf-8", "\n\n".join(lines).encode())


def chunk(text: str, finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return {"id": "x", "choices": [choice]}


def paths(ours: Answer, theirs: Answer) -> list[str]:
    return [one.path for one in differences(ours, theirs)]


def test_a_stream_is_the_same_in_other_steps() -> None:
    assert differences(stream(chunk("ab", "stop")), stream(chunk("a"), chunk("b", "stop"))) == []
    assert paths(stream(chunk("ab", "stop")), stream(chunk("a", "stop"))) == [".choices[0].content"]
    assert paths(stream(chunk("a", "stop")), stream(chunk("a", "length"))) == [
        ".choices[0].finish_reason"
    ]


def test_what_changes_with_every_answer_does_not_count() -> None:
    assert differences(Answer(200, {"id": 1, "a": 0.5}), Answer(200, {"id": 2, "a": 0.5001})) == []
    assert paths(Answer(200, {"a": 1}), Answer(200, {"a": 1, "b": 2})) == [".b"]
    assert differences(Answer(200, {"a": 1, "b": None}), Answer(200, {"a": 1})) == []
    assert paths(Answer(200, {"a": [1]}), Answer(200, {"a": [1, 2]})) == [".a"]


def test_of_refusals_the_status_counts() -> None:
    assert differences(Answer(400, {"error": "x"}), Answer(400, "y")) == []
    assert paths(Answer(400, "x"), Answer(200, {})) == ["status"]


def test_a_reason_is_of_its_requests_and_places() -> None:
    reason = Reason("^chat", r"\.model$", "why", "EAGLE")
    found = Difference(".model", "a", "b")
    assert reason.covers("PD, EAGLE", "chat: plain", found)
    assert not reason.covers("unified", "chat: plain", found)
    assert not reason.covers("PD, EAGLE", "completion: plain", found)
    assert not reason.covers("PD, EAGLE", "chat: plain", Difference(".text", "a", "b"))


def test_the_requests_are_many_and_every_reason_is_about_some() -> None:
    names = [case.name for case in cases()]
    assert len(names) == len(set(names)) >= 400
    assert set(names) >= FATAL
    assert [one.why for one in REASONS if not any(re.search(one.name, n) for n in names)] == []
