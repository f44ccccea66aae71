"""JSON schemas of the request classes that bodies are really read into; knows no route."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter
from sglang.srt.entrypoints.anthropic.protocol import (
    AnthropicCountTokensRequest,
    AnthropicMessagesRequest,
)
from sglang.srt.entrypoints.openai.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    ResponsesRequest,
    ScoringRequest,
    TokenizeRequest,
)
from sglang.srt.managers.io_struct import GenerateReqInput, VertexGenerateReqInput

_CLASSES: dict[str, Any] = {
    "chat": ChatCompletionRequest,
    "completion": CompletionRequest,
    "messages": AnthropicMessagesRequest,
    "count_tokens": AnthropicCountTokensRequest,
    "responses": ResponsesRequest,
    "generate": GenerateReqInput,
    "vertex": VertexGenerateReqInput,
    "tokenize": TokenizeRequest,
    "detokenize": DetokenizeRequest,
    "score": ScoringRequest,
}
_TIMEOUT = {"type": ["number", "null"], "description": "Seconds that the request may take in all."}


def schemas() -> dict[str, dict[str, Any]]:
    """Return schemas by name for OpenAPI's `components`: one an endpoint, and their parts."""
    found: dict[str, dict[str, Any]] = {}
    for endpoint, request_class in _CLASSES.items():
        template = f"#/components/schemas/{endpoint}.{{model}}"
        schema = TypeAdapter(request_class).json_schema(ref_template=template)
        parts = schema.pop("$defs", {})
        schema.setdefault("properties", {})["timeout"] = _TIMEOUT
        found[endpoint] = schema
        found |= {f"{endpoint}.{name}": part for name, part in parts.items()}
    return found
