"""Bounds on the bodies of Anthropic's Messages API and of OpenAI's Responses API.

Checked on the JSON, as those of `bodies`; what an engine uses is checked again by the gate. It does
not know how a body was read, or what SGLang does with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pd_eagle.http.bodies import (
    BODY,
    MAX_MESSAGES,
    SMALL,
    ResponseFormat,
    TemplateArguments,
    Tools,
)
from pd_eagle.requests.bounds import Bound, Flag, Text, Unused, shown
from pd_eagle.requests.gate import MAX_LABEL_BYTES, OPTIONS, SAMPLING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pd_eagle.http.answers import Endpoint
    from pd_eagle.messages import EngineInfo

#: Of all turns together, those within a tool's result included; each is validated once.
MAX_BLOCKS = 2**13
_MEDIA = (
    *("image", "document", "container_upload", "input_image", "image_url", "input_file"),
    *("input_audio", "computer_screenshot"),
)


@dataclass(frozen=True, slots=True)
class Turns:
    """A conversation: a text, or a list of turns with blocks in them; of text alone."""

    most: int

    def expected(self, value: Any, limits: EngineInfo) -> str | None:
        turns = value if isinstance(value, list) else []
        if len(turns) > self.most:
            return f"at most {self.most} of them"
        for number, block in enumerate(_blocks(turns, depth=3), 1):
            if number > MAX_BLOCKS:
                return f"at most {MAX_BLOCKS} blocks in all of them together"
            if block.get("type") in _MEDIA:
                return f"text alone: this server reads no {shown(block['type'])}"
        return None


def _blocks(blocks: list[Any], depth: int) -> Iterator[dict[str, Any]]:
    for block in blocks:
        if not isinstance(block, dict):
            continue
        yield block
        for name in ("content", "output", "summary"):
            if depth and isinstance(block.get(name), list):
                yield from _blocks(block[name], depth - 1)


_ROUTING: dict[str, Bound] = {
    name: BODY[name] for name in ("bootstrap_host", "bootstrap_port", "bootstrap_room")
} | {name: OPTIONS[name] for name in ("routed_dp_rank", "disagg_prefill_dp_rank")}
_SAMPLING = {name: SAMPLING[name] for name in ("temperature", "top_p", "top_k")}

#: Every field of SGLang's `AnthropicMessagesRequest` and `AnthropicCountTokensRequest`.
MESSAGES: dict[str, Bound] = {
    "model": Text(MAX_LABEL_BYTES),
    "messages": Turns(MAX_MESSAGES),
    "system": Turns(MAX_MESSAGES),
    "max_tokens": SAMPLING["max_new_tokens"],
    "stop_sequences": SAMPLING["stop"],
    "stream": Flag(),
    "thinking": SMALL,
    "tool_choice": SMALL,
    "tools": Tools(("input_schema",)),
    "output_config": ResponseFormat(),
    "metadata": Unused("a label of the client's own"),
    "betas": Unused("SGLang has no such features"),
    **_SAMPLING,
    **_ROUTING,
}

#: Every field of SGLang's `ResponsesRequest`.
RESPONSES: dict[str, Bound] = {
    "model": Text(MAX_LABEL_BYTES),
    "input": Turns(MAX_MESSAGES),
    "instructions": Text(2**24),
    "max_output_tokens": SAMPLING["max_new_tokens"],
    "stream": Flag(),
    "store": Flag(),
    "background": Flag(),
    "parallel_tool_calls": Flag(),
    "include": SMALL,
    "reasoning": SMALL,
    "tool_choice": SMALL,
    "tools": Tools(("parameters",)),
    "text": ResponseFormat(),
    "top_logprobs": OPTIONS["top_logprobs_num"],
    "previous_response_id": Text(256),
    "request_id": Text(256),
    "chat_template_kwargs": TemplateArguments(),
    "metadata": SMALL,  # it comes back with the response
    **{name: BODY[name] for name in ("stop", "min_p", "frequency_penalty", "presence_penalty")},
    **{name: BODY[name] for name in ("repetition_penalty", "extra_key", "cache_salt", "priority")},
    **{name: OPTIONS[name] for name in ("session_id", "data_parallel_rank")},
    **dict.fromkeys(
        ("service_tier", "truncation", "user", "max_tool_calls"),
        Unused("SGLang makes nothing of it"),
    ),
    **_SAMPLING,
    **_ROUTING,
}

TABLES: Mapping[Endpoint, dict[str, Bound]] = {
    "chat": BODY,
    "completion": BODY,
    "messages": MESSAGES,
    "count_tokens": MESSAGES,
    "responses": RESPONSES,
}
