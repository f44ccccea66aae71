"""The routes of SGLang's own server beside OpenAI's: native requests, operations, refusals.

It knows HTTP and nothing of SGLang. How a request is admitted, read and answered is handed in.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

from pd_eagle.errors import InvalidRequest, PdEagleError
from pd_eagle.http.access import authorize, authorize_admin
from pd_eagle.http.error_responses import json_response
from pd_eagle.http.unserved import UNSERVED, Refusal
from pd_eagle.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from pd_eagle.http.answers import Endpoint
    from pd_eagle.requests.health import Health
    from pd_eagle.requests.operations import Operations

    Handler = Callable[[Request], Awaitable[Response]]
    #: Path, methods, handler.
    Row = tuple[str, tuple[str, ...], Handler]

_GET, _POST, _EITHER = ("GET",), ("POST",), ("GET", "POST")
_SMALL_BODY_BYTES = 2**16
#: What SGLang's `start_profile` takes.
_PROFILE = frozenset(
    (
        *("output_dir", "start_step", "num_steps", "activities", "profile_by_stage"),
        *("with_stack", "record_shapes", "merge_profiles", "profile_prefix"),
    )
)


class NativeFront(Protocol):
    """What these routes need of the front."""

    api_key: str | None
    admin_api_key: str | None
    operations: Operations

    def health(self) -> Health: ...


#: How long `/flush_cache` waits for busy engines where the request does not say, in seconds.
_FLUSH_WAIT_S = "2"


class NativeRoutes:
    """Handlers of the routes; `rows` is their table."""

    def __init__(
        self,
        front: NativeFront,
        generate: Callable[[Endpoint, Request], Awaitable[Response]],
        model_info: Callable[[Request], dict[str, Any]],
        abort: Callable[[str | None], None],
    ) -> None:
        """`generate` reads, admits and answers a request for an endpoint; `model_info` says what
        is served, to those who may know; `abort` ends requests of that name, or all.
        """
        self._front = front
        self._operations = front.operations
        self._generate = generate
        self._model_info = model_info
        self._abort = abort

    def rows(self) -> list[Row]:
        """Return path, methods and handler of each route."""
        asks: list[tuple[str, tuple[str, ...], Endpoint]] = [
            ("/generate", ("POST", "PUT"), "generate"),
            ("/vertex_generate", _POST, "vertex"),
            ("/invocations", _POST, "chat"),
            ("/tokenize", _POST, "tokenize"),
            ("/v1/tokenize", _POST, "tokenize"),
            ("/detokenize", _POST, "detokenize"),
            ("/v1/detokenize", _POST, "detokenize"),
            ("/v1/score", _POST, "score"),
        ]
        return [
            *((path, methods, partial(self._generate, name)) for path, methods, name in asks),
            *self._information(),
            *self._administration(),
            *(
                (path, refusal.methods, partial(self._refuse, refusal))
                for path, refusal in UNSERVED.items()
            ),
        ]

    def _information(self) -> list[Row]:
        return [
            ("/", _GET, self._root),
            ("/get_model_info", _GET, self._model),
            ("/model_info", _GET, self._model),
            ("/version", _GET, self._version),
            ("/v1/loads", _GET, self._loads),
            ("/ready", _GET, self._ping),
            ("/ping", _GET, self._ping),
            ("/health_generate", _GET, self._health_generate),
        ]

    def _administration(self) -> list[Row]:
        rows: list[Row] = [
            ("/get_server_info", _GET, self._server_info),
            ("/server_info", _GET, self._server_info),
            ("/flush_cache", _EITHER, self._flush_cache),
            ("/abort_request", _POST, self._abort_request),
            ("/start_profile", _EITHER, self._start_profile),
            ("/stop_profile", _EITHER, self._stop_profile),
        ]
        return [(path, methods, self._for_admins(handler)) for path, methods, handler in rows]

    def _for_admins(self, handler: Handler) -> Handler:
        async def endpoint(request: Request) -> Response:
            authorize_admin(request, self._front)
            return await handler(request)

        return endpoint

    async def _refuse(self, refusal: Refusal, request: Request) -> Response:
        authorize(request, self._front)
        raise HTTPException(refusal.status, refusal.reason)

    # --- what the server says of itself

    async def _root(self, _: Request) -> Response:
        return json_response("pd_eagle is running")

    async def _version(self, _: Request) -> Response:
        return json_response({"version": VERSION})

    async def _model(self, request: Request) -> Response:
        return json_response(self._model_info(request))

    async def _loads(self, request: Request) -> Response:
        authorize(request, self._front)
        if request.query_params.get("format") == "prometheus":
            text = self._operations.loads_exposition()
            return PlainTextResponse(text, media_type="text/plain; version=0.0.4")
        return json_response(self._operations.loads())

    async def _ping(self, _: Request) -> Response:
        return Response(status_code=200 if self._front.health().serving else 503)

    async def _health_generate(self, _: Request) -> Response:
        try:
            await self._operations.generate_token()
        except PdEagleError as error:
            return json_response({"status": "unhealthy", "reason": error.message}, 503)
        return Response(status_code=200)

    # --- administration

    async def _server_info(self, _: Request) -> Response:
        return json_response(await self._operations.server_info())

    async def _flush_cache(self, request: Request) -> Response:
        # A decode engine ends a request a moment after its client has the answer.
        wait_s = _seconds(request.query_params.get("timeout", _FLUSH_WAIT_S))
        if why := await self._operations.flush_cache(wait_s):
            return PlainTextResponse(f"Flush cache failed: {why}\n", 400)
        return PlainTextResponse("Cache flushed.\n")

    async def _abort_request(self, request: Request) -> Response:
        fields = await _small_object(request)
        rid, everything = fields.get("rid") or "", fields.get("abort_all", False)
        if not isinstance(rid, str) or not isinstance(everything, bool) or not (rid or everything):
            raise InvalidRequest('the body: wanted {"rid": "…"} or {"abort_all": true}')
        self._abort(None if everything else rid)
        return Response(status_code=200)

    async def _start_profile(self, request: Request) -> Response:
        fields = await _small_object(request)
        if unknown := sorted(fields.keys() - _PROFILE):
            raise InvalidRequest(f"{unknown[0]!r:.80}: wanted one of {', '.join(sorted(_PROFILE))}")
        await self._operations.control("start_profile", fields)
        return PlainTextResponse("Start profiling.\n")

    async def _stop_profile(self, _: Request) -> Response:
        await self._operations.control("stop_profile", {})
        return PlainTextResponse("Stop profiling. This will take some time.\n")


def _seconds(given: str) -> float:
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 600:
        raise InvalidRequest(f"timeout={given[:80]!r}: wanted seconds from 0 to 600")
    return seconds


async def _small_object(request: Request) -> dict[str, Any]:
    """Return the JSON object in the body, which may be missing."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _SMALL_BODY_BYTES:
            raise HTTPException(413, f"wanted a body of at most {_SMALL_BODY_BYTES} bytes")
    try:
        fields = orjson.loads(bytes(body) or b"{}")
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidRequest("the body: wanted a JSON object")
    return fields
