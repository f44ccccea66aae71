"""Bodies of the Messages and Responses APIs: bounds, preambles, unknown fields, what is stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from pd_eagle.errors import InvalidRequest
from pd_eagle.http import bodies, unknown_fields
from pd_eagle.http.agent_bodies import MAX_BLOCKS, MESSAGES, RESPONSES
from pd_eagle.http.api_options import ApiOptions
from pd_eagle.http.preambles import without_preamble
from pd_eagle.http.response_store import ResponseStore
from pd_eagle.messages import EngineInfo
from pd_eagle.plan.config import Settings

LIMITS = EngineInfo(1, [2], 4096, 1024, 1000)
TEXT = [{"type": "text", "text": "x"}]
IMAGE = {"type": "image", "source": {}}


def turn(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    ("table", "fields", "told"),
    [
        (MESSAGES, {"messages": [turn([IMAGE])]}, "text alone: this server reads no 'image'"),
        (
            MESSAGES,
            {"messages": [turn([{"type": "tool_result", "content": [IMAGE]}])]},
            "reads no 'image'",
        ),
        (MESSAGES, {"messages": [turn(TEXT * MAX_BLOCKS)]}, "at most 8192 blocks"),
        (MESSAGES, {"messages": [turn("x")] * 4097}, "at most 4096 of them"),
        (MESSAGES, {"stop_sequences": [""]}, "stop_sequences="),
        (MESSAGES, {"top_k": -5}, "top_k=-5"),
        (MESSAGES, {"tools": [{}] * 513}, "at most 512 tools"),
        (RESPONSES, {"input": [turn([{"type": "input_file"}])]}, "reads no 'input_file'"),
        (RESPONSES, {"top_logprobs": 1000}, "top_logprobs=1000"),
        (RESPONSES, {"session_id": "a"}, "session_id='a': wanted unset"),
        (RESPONSES, {"metadata": {"a": "x" * 10_000}}, "metadata="),
    ],
)
def test_what_is_refused(table: Any, fields: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        bodies.check(fields, LIMITS, 64, table)
    assert told in str(refused.value)


@pytest.mark.parametrize("name", ["input_schema", "parameters"])
def test_a_tools_schema_is_bounded_wherever_it_is(name: str) -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(40):
        schema = {"type": "array", "items": schema}
    table = MESSAGES if name == "input_schema" else RESPONSES
    with pytest.raises(InvalidRequest, match="tools whose parameters are"):
        bodies.check({"tools": [{"name": "f", name: schema}]}, LIMITS, 64, table)
    bodies.check({"tools": [{"name": "f", name: {"type": "object"}}]}, LIMITS, 64, table)


def test_a_conversation_with_tools_passes() -> None:
    call = {"type": "tool_use", "id": "1", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": TEXT}
    turns = [turn("x"), {"role": "assistant", "content": [call]}, turn([result, *TEXT])]
    bodies.check({"messages": turns, "system": TEXT, "top_k": 5}, LIMITS, 64, MESSAGES)
    items = [{"type": "function_call_output", "call_id": "1", "output": "x"}, turn("x")]
    bodies.check({"input": items, "instructions": "x"}, LIMITS, 64, RESPONSES)
    bodies.check({"input": "x"}, LIMITS, 64, RESPONSES)


BILLING = "x-anthropic-billing-header: cc_version=2.1; cch=0a1b;"


@pytest.mark.parametrize(
    ("system", "left"),
    [
        (f"{BILLING}\nYou are an agent.\nx", "You are an agent.\nx"),
        (f"\n{BILLING.upper()}\n{BILLING}\nYou", "You"),
        (f"You\n{BILLING}", f"You\n{BILLING}"),
        ([{"type": "text", "text": BILLING}, *TEXT], TEXT),
        ([{"type": "text", "text": f"{BILLING}\nx"}], TEXT),
        (BILLING, ""),
        ([{"type": "text", "text": BILLING}], []),
        (None, None),
        ([7], [7]),
    ],
)
def test_a_changing_preamble_is_left_out(system: Any, left: Any) -> None:
    preambles = ApiOptions.of(Settings.from_env({})).preambles
    assert without_preamble(system, preambles) == left
    off = ApiOptions.of(Settings.from_env({"SYSTEM_PREAMBLES": "off"})).preambles
    assert without_preamble(system, off) == system


def test_an_unknown_field_is_named_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    fields = {"model": "m", "metadata": {}, "nonsense,\u00e9": 1}
    known = {"model"}
    assert unknown_fields.take(dict(fields), "chat", known, strict=False) == ["nonsense?\\xe9"]
    assert unknown_fields.take(dict(fields), "chat", known, strict=False) == ["nonsense?\\xe9"]
    assert caplog.text.count("is unknown and ignored (STRICT_FIELDS)") == 1
    left = dict(fields)
    unknown_fields.take(left, "chat", known, strict=False)
    assert left == {"model": "m"}
    with pytest.raises(InvalidRequest, match="STRICT_FIELDS"):
        unknown_fields.take(dict(fields), "chat", known, strict=True)
    assert unknown_fields.take({"metadata": {}}, "chat", known, strict=True) == []


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"suffix": "x"}, True),
        ({"best_of": 2}, True),
        ({"suffix": "", "best_of": 1}, False),
        ({"suffix": None, "best_of": None}, False),
        ({"n": 3, "best_of": 3}, False),
        ({"n": 2, "best_of": 3}, True),
    ],
)
def test_what_would_change_an_answer_is_never_ignored(
    fields: dict[str, Any], refused: bool
) -> None:
    known = {"suffix", "best_of", "n"}
    if not refused:
        assert unknown_fields.take(fields, "completion", known, strict=False) == []
        return
    with pytest.raises(InvalidRequest, match="wanted unset"):
        unknown_fields.take(fields, "completion", known, strict=False)


@dataclass
class Stored:
    status: str = "completed"
    text: str = "x" * 100

    def model_dump(self) -> dict[str, str]:
        return {"text": self.text}


@dataclass
class Held:
    """A store of 1000 bytes; each response below takes about 130, its messages about 110."""

    store: ResponseStore = field(default_factory=lambda: ResponseStore(1000))

    def keep(self, name: str, status: str = "completed") -> None:
        self.store.messages[name] = [{"content": "y" * 90}]
        self.store[name] = Stored(status)
        self.store.messages[name] = [{"content": "y" * 90}]


def test_the_oldest_responses_go() -> None:
    held = Held()
    for number in range(20):
        held.keep(str(number))
        assert held.store.held_bytes <= 1000
        assert str(number) in held.store
    assert list(held.store) == list(held.store.messages) == ["16", "17", "18", "19"]


def test_one_that_runs_is_kept() -> None:
    held = Held()
    held.keep("running", "in_progress")
    for number in range(20):
        held.keep(str(number))
    assert "running" in held.store
    assert "running" in held.store.messages
    assert len(held.store) == 4


def test_messages_of_a_request_that_failed_go_too() -> None:
    held = Held()
    held.store.messages["failed"] = [{"content": "y" * 900}]
    held.keep("next")
    assert list(held.store.messages) == ["next"]
