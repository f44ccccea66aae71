"""Two servers' answers to one request, field by field, and the reasons for those that differ.

It does not know how a server is started or asked.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Fields that no two answers have in common, also of one server.
VOLATILE = frozenset(
    (
        *("id", "created", "created_at", "timestamp", "completed_at", "item_id", "request_id"),
        *("e2e_latency", "queue_time", "forward_entry_time", "response_sent_to_client_ts"),
        *("request_received_ts", "first_token_latency", "api_server_dispatch_finish_ts"),
        *("request_finished_ts", "decode_throughput", "prefill_finished_time", "inference_time"),
        *("prefill_launch_delay", "prefill_launch_latency", "prefill_waiting_latency"),
        *("request_sent_to_scheduler_ts", "prefill_finished_ts", "num_retractions"),
        # of what other requests left in the prefix cache
        *(
            "cached_tokens",
            "cached_tokens_details",
            "prompt_tokens_details",
            "input_tokens_details",
        ),
        *("cache_read_input_tokens", "cache_creation_input_tokens", "matched_prefix_length"),
    )
)
_TOLERANCE = 2e-3  # of log probabilities in float32, over batches of other shapes


@dataclass(frozen=True, slots=True)
class Answer:
    """A status and a body: JSON, the events of a stream put together, or text."""

    status: int
    body: Any


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two answers differ, and both values as text."""

    path: str
    ours: str
    theirs: str


@dataclass(frozen=True, slots=True)
class Reason:
    """Why answers differ on purpose: requests, the place of the difference, systems it is of."""

    name: str
    path: str
    why: str
    system: str = ""

    def covers(self, system: str, name: str, difference: Difference) -> bool:
        return (
            re.search(self.name, name) is not None
            and re.search(self.path, difference.path) is not None
            and re.search(self.system, system) is not None
        )


def answer(status: int, content_type: str, body: bytes) -> Answer:
    """Return what was answered; a stream's events are put together."""
    text = body.decode(errors="replace")
    if content_type.startswith("text/event-stream"):
        events = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
        ended = events[-1:] == ["[DONE]"]
        parsed = [json.loads(event) for event in events if event != "[DONE]"]
        return Answer(status, {"done": ended} | _folded(parsed))
    try:
        return Answer(status, json.loads(text))
    except ValueError:
        return Answer(status, text)


def _folded(events: list[Any]) -> dict[str, Any]:
    """Return a stream's answer whatever its steps were: text added up, the last of all else."""
    whole: dict[str, Any] = {}
    choices: dict[Any, dict[str, Any]] = {}
    for event in events:
        if "choices" in event:
            for choice in event["choices"]:
                _add_choice(choices.setdefault(choice.get("index"), {}), choice)
            whole |= {k: v for k, v in event.items() if k != "choices" and v is not None}
        elif "meta_info" in event:  # SGLang's own: each has the whole so far
            choices[event.get("index")] = event
        else:
            _add_typed(whole, event)
    return whole | {"choices": [choices[key] for key in sorted(choices, key=str)]}


def _add_choice(whole: dict[str, Any], choice: dict[str, Any]) -> None:
    parts = choice | (choice.get("delta") or {})
    for name, value in parts.items():
        if name == "delta" or value is None:
            continue
        if name in ("text", "content", "reasoning_content"):
            whole[name] = whole.get(name, "") + value
        elif name == "token_ids":
            whole[name] = whole.get(name, []) + value
        elif name == "logprobs":
            _add_lists(whole.setdefault(name, {}), value)
        else:
            whole[name] = value


def _add_lists(whole: dict[str, Any], value: dict[str, Any]) -> None:
    for name, items in value.items():
        if isinstance(items, list):
            whole[name] = whole.get(name, []) + items


def _add_typed(whole: dict[str, Any], event: dict[str, Any]) -> None:
    """Add an event of Anthropic's or of OpenAI's Responses."""
    kind = event.get("type", "")
    kinds = whole.setdefault("kinds", [])
    if kind not in kinds[-1:]:
        kinds.append(kind)
    delta = event.get("delta")
    text = delta.get("text") if isinstance(delta, dict) else delta
    if isinstance(text, str):
        whole["text"] = whole.get("text", "") + text
    elif kind != "ping":
        whole[f"last {kind}"] = {k: v for k, v in event.items() if k != "sequence_number"}


def differences(ours: Answer, theirs: Answer) -> list[Difference]:
    """Return where two answers differ; of two refusals the status alone counts."""
    found = []
    if ours.status != theirs.status:
        return [
            Difference("status", f"{ours.status} {_said(ours)}", f"{theirs.status} {_said(theirs)}")
        ]
    if ours.status >= 400:
        return []
    found = list(_compare("", ours.body, theirs.body))
    return found[:40]


def _said(one: Answer) -> str:
    return json.dumps(one.body)[:160] if one.status >= 400 else ""


def _compare(path: str, ours: Any, theirs: Any) -> Iterator[Difference]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in sorted((ours.keys() | theirs.keys()) - VOLATILE):
            inner = f"{path}.{name}"
            if name not in ours or name not in theirs:
                # As good as absent: a client reads both as nothing.
                if ours.get(name) is None and theirs.get(name) is None:
                    continue
                yield Difference(inner, _shown(ours, name), _shown(theirs, name))
            else:
                yield from _compare(inner, ours[name], theirs[name])
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from _compare(f"{path}[{number}]", one, other)
    elif not _equal(ours, theirs):
        yield Difference(path or "body", json.dumps(ours)[:200], json.dumps(theirs)[:200])


def _shown(body: dict[str, Any], name: str) -> str:
    return json.dumps(body[name])[:200] if name in body else "(absent)"


def _equal(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float) and isinstance(theirs, int | float):
        return abs(ours - theirs) <= _TOLERANCE * max(1.0, abs(theirs))
    if isinstance(theirs, float) and isinstance(ours, int):
        return abs(ours - theirs) <= _TOLERANCE
    return bool(ours == theirs)
