"""Two agents that call a tool and then tell of its result: over `/v1/messages`, `/v1/responses`.

Each speaks its API by hand, event by event, so that something can be done in mid-answer.
"""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.engine.serving import ServerProcess

TIMEOUT_S = 400.0
NAME = "get_weather"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
}
QUESTION = "What is the weather in Paris?"
STORY = "Write a long story about a dog in this weather."
SAID = {"temperature": 0, "model": "default"}
#: Deltas of the answer after which something happens.
STRIKE_AFTER = 4


@dataclass
class Told:
    """What an agent saw: the call, the text of its last answer, how each turn ended."""

    call: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    ends: list[str] = field(default_factory=list)


def events(server: ServerProcess, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the data of each server-sent event."""
    raw = json.dumps(body | {"stream": True}).encode()
    request = urllib.request.Request(f"{server.url}{path}", raw)
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        for line in response:
            if line.startswith(b"data: "):
                yield json.loads(line[6:])


def messages_agent(server: ServerProcess, strike: Callable[[], None]) -> Told:
    """Run the loop over `/v1/messages`; calls `strike` in the middle of the last answer."""
    told = Told()
    tool = {"name": NAME, "description": "The weather of a city", "input_schema": SCHEMA}
    turns: list[dict[str, Any]] = [{"role": "user", "content": QUESTION}]
    first = SAID | {"max_tokens": 60, "messages": turns, "tool_choice": {"type": "any"}}
    blocks: dict[int, dict[str, Any]] = {}
    for event in events(server, "/v1/messages", first | {"tools": [tool | {"strict": True}]}):
        if event["type"] == "content_block_start":
            blocks[event["index"]] = event["content_block"] | {"json": ""}
        elif event["type"] == "content_block_delta" and "partial_json" in event["delta"]:
            blocks[event["index"]]["json"] += event["delta"]["partial_json"]
        elif event["type"] == "message_delta":
            told.ends.append(event["delta"]["stop_reason"])
    call = next(block for block in blocks.values() if block["type"] == "tool_use")
    told.call = {"name": call["name"], "arguments": json.loads(call["json"])}
    used = {"type": "tool_use", "id": call["id"], "name": NAME, "input": told.call["arguments"]}
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "18 degrees, rain"}
    asked = {"type": "text", "text": STORY}
    turns += [
        {"role": "assistant", "content": [used]},
        {"role": "user", "content": [result, asked]},
    ]
    second = SAID | {"max_tokens": 48, "messages": turns, "tools": [tool]}
    deltas = 0
    for event in events(server, "/v1/messages", second):
        if event["type"] == "content_block_delta":
            told.text += event["delta"].get("text") or event["delta"].get("partial_json") or ""
            deltas += 1
            if deltas == STRIKE_AFTER:
                strike()
        elif event["type"] == "message_delta":
            told.ends.append(event["delta"]["stop_reason"])
        assert event["type"] != "error", event
    return told


def responses_agent(server: ServerProcess, strike: Callable[[], None]) -> Told:
    """Run the loop over `/v1/responses`, whose first response is stored and continued."""
    told = Told()
    tool = {"type": "function", "name": NAME, "description": "Weather", "parameters": SCHEMA}
    first = SAID | {"max_output_tokens": 62, "input": QUESTION, "store": True}
    first |= {"tools": [tool | {"strict": True}], "tool_choice": "required"}
    last: dict[str, Any] = {}
    for event in events(server, "/v1/responses", first):
        last = event
    told.ends.append(last["response"]["status"])
    call = next(item for item in last["response"]["output"] if item["type"] == "function_call")
    told.call = {"name": call["name"], "arguments": json.loads(call["arguments"])}
    result = {"type": "function_call_output", "call_id": call["call_id"]}
    second = SAID | {
        "max_output_tokens": 50,
        "previous_response_id": last["response"]["id"],
        "input": [result | {"output": "18 degrees, rain"}, {"role": "user", "content": STORY}],
    }
    deltas = 0
    for event in events(server, "/v1/responses", second):
        if event["type"] == "response.output_text.delta":
            told.text += event["delta"]
            deltas += 1
            if deltas == STRIKE_AFTER:
                strike()
        last = event
    told.ends.append(last["response"]["status"])
    return told
