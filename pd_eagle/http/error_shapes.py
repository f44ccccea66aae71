"""The shapes of an error in the APIs that are spoken here: OpenAI's, Anthropic's, Ollama's.

It knows no statuses of its own: an error brings its status along.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from pd_eagle.errors import PdEagleError, openai_error

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The paths below these answer in a shape of their own.
_ANTHROPIC, _RESPONSES, _OLLAMA = "/v1/messages", "/v1/responses", "/api/"
_ANTHROPIC_TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_body(path: str, status: int, message: str, kind: str, code: str) -> dict[str, Any]:
    """Return the body of an error response to a request for `path`."""
    if path.startswith(_ANTHROPIC):
        other = "api_error" if status >= 500 else "invalid_request_error"
        told = {"type": _ANTHROPIC_TYPES.get(status, other), "message": message}
        return {"type": "error", "error": told}
    if path.startswith(_OLLAMA):
        return {"error": message}
    return openai_error(message, kind, code)


def body_of(path: str, error: PdEagleError) -> dict[str, Any]:
    """Return `error` as the body of a response to a request for `path`."""
    if path.startswith((_ANTHROPIC, _OLLAMA)):
        return error_body(path, error.status, error.message, "", "")
    return error.as_openai()


def event_of(path: str, error: PdEagleError) -> str:
    """Return `error` as what ends a stream that has begun."""
    body = body_of(path, error)
    if path.startswith(_RESPONSES):
        body = body["error"] | {"type": "error", "sequence_number": 0}
    told = orjson.dumps(body).decode()
    if path.startswith((_ANTHROPIC, _RESPONSES)):
        return f"event: error\ndata: {told}\n\n"
    return f"{told}\n" if path.startswith(_OLLAMA) else f"data: {told}\n\ndata: [DONE]\n\n"
