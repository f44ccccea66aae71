"""Errors as HTTP responses in the shape of the API that was asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from pd_eagle.errors import NotServing, PdEagleError
from pd_eagle.http.error_shapes import body_of, error_body

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.requests import Request

CLIENT_CLOSED_REQUEST = 499  # nginx's status; nobody reads the response
_RETRY_AFTER_S = 1

_HTTP_CODES = {
    401: ("authentication_error", "invalid_api_key"),
    403: ("permission_error", "admin_only"),
    404: ("invalid_request_error", "unknown_url"),
    405: ("invalid_request_error", "method_not_allowed"),
    413: ("invalid_request_error", "body_too_large"),
    501: ("not_implemented_error", "not_implemented"),
}


def json_response(content: object, status: int = 200, **headers: str) -> Response:
    return Response(
        orjson.dumps(content), status, headers={"content-type": "application/json", **headers}
    )


def internal_error(error: Exception) -> PdEagleError:
    """Return what a client is told about an error that nobody expected."""
    return PdEagleError(f"internal error: {type(error).__name__}")


async def _pd_eagle_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PdEagleError)
    headers = {"retry-after": str(_RETRY_AFTER_S)} if error.status in (429, 503) else {}
    if isinstance(error, NotServing):
        headers["connection"] = "close"  # so that the client's retry can reach another server
    return json_response(body_of(request.url.path, error), error.status, **headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind, code = _HTTP_CODES.get(error.status_code, ("invalid_request_error", "http_error"))
    message, path = error.detail, request.url.path
    if error.status_code in (404, 405):
        message = f"{request.method} {path}: {error.detail}"
    body = error_body(path, error.status_code, message, kind, code)
    return json_response(body, error.status_code, **dict(error.headers or {}))


async def _crash(request: Request, error: Exception) -> Response:
    return json_response(body_of(request.url.path, internal_error(error)), 500)


async def _disconnected(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


#: Starlette's table of exception handlers.
HANDLERS: Mapping[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    PdEagleError: _pd_eagle_error,
    HTTPException: _http_error,
    ClientDisconnect: _disconnected,
    Exception: _crash,
}
