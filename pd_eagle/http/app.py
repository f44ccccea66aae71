"""The Starlette application: routes, status codes, server-sent events, errors in OpenAI's shape.

It knows HTTP and nothing of SGLang. The service and the OpenAI layer are handed in, and may still
be starting when the first request comes.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import ExitStack, aclosing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from pd_eagle.errors import ModelNotFound, NotServing, PdEagleError, openai_error
from pd_eagle.http import api_keys
from pd_eagle.http.keep_alive import KeepAlive
from pd_eagle.http.pacing import Turns
from pd_eagle.http.request_body import BodyMemory

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
    from contextlib import AbstractContextManager

    from starlette.requests import Request
    from starlette.types import Message, Receive, Scope, Send

    from pd_eagle.plan.tool_parsers import ToolParser
    from pd_eagle.requests.health import Health

logger = logging.getLogger(__name__)

Endpoint = Literal["chat", "completion"]

_RETRY_AFTER_S = 1
# In a request's scope: `send` as the server gave it.
_SERVERS_SEND = "pd_eagle.send"
# About a millisecond's work, if all are refused.
_REQUESTS_A_TURN = 4


class OpenAI(Protocol):
    """The OpenAI layer as the routes use it; `pd_eagle.http.openai_api.OpenAIApi` is one."""

    model: str
    context_length: int
    tool_parser: ToolParser

    async def parse(self, endpoint: Endpoint, body: bytes, http: Request) -> Any: ...
    async def stream(
        self, endpoint: Endpoint, request: Any, http: Request
    ) -> AsyncGenerator[str, None]: ...
    async def answer(self, endpoint: Endpoint, request: Any, http: Request) -> bytes: ...


class Front(Protocol):
    """What the routes are about."""

    openai: OpenAI | None
    api_key: str | None
    keep_alive_s: float
    max_body_memory_bytes: int

    @property
    def failing(self) -> bool: ...
    def health(self) -> Health: ...
    def metrics(self, accept: str) -> tuple[bytes, str]: ...
    def door(self, client: str) -> AbstractContextManager[None]: ...


def json_response(content: object, status: int = 200, **headers: str) -> Response:
    return Response(
        orjson.dumps(content), status, headers={"content-type": "application/json", **headers}
    )


class EventStream(StreamingResponse):
    """Server-sent events whose status is decided by the first one, and whose source is closed with
    the response, as is `door`.

    An error before the first event is an ordinary error response; after it, one error event.
    """

    def __init__(
        self, events: AsyncGenerator[str, None], door: ExitStack, keep_alive_s: float
    ) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._keep_alive_s = keep_alive_s
        self._events = events
        self._door = door
        self.headers["cache-control"] = "no-cache"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._door:
            await self._send_unless_gone(receive, self._send_events(send, scope[_SERVERS_SEND]))

    async def _send_unless_gone(
        self, receive: Receive, events: Coroutine[None, None, None]
    ) -> None:
        # The body has been read, so all that can still be received is the disconnect.
        sending = asyncio.create_task(events)
        gone = asyncio.create_task(receive_disconnect(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not sending.done():
                sending.cancel()  # also when it is blocked in send
            await asyncio.wait({sending, gone})
        if not sending.cancelled():
            sending.result()

    async def _send_events(self, start: Send, send: Send) -> None:
        """Start the response with `start`, which Starlette has wrapped to know that it has begun;
        the rest goes by `send`, past those wrappers, which do nothing with it for every token.
        """
        async with aclosing(self._events):
            first = await anext(self._events)
            await start({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send(_piece(first))
            try:
                with KeepAlive(send, self._keep_alive_s) as alive:
                    async for event in self._events:
                        alive.sent += 1
                        await send(_piece(event))
            except PdEagleError as error:
                await self._send_error(send, error)
            except Exception as error:
                logger.exception("a stream failed")
                await self._send_error(send, _internal(error))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_error(self, send: Send, error: PdEagleError) -> None:
        body = orjson.dumps(error.as_openai()).decode()
        await send(_piece(f"data: {body}\n\ndata: [DONE]\n\n"))


def _piece(event: str) -> Message:
    return {"type": "http.response.body", "body": event.encode(), "more_body": True}


async def receive_disconnect(receive: Receive) -> None:
    """Return when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _unless_gone(work: Awaitable[bytes], receive: Receive) -> bytes | None:
    """Return what `work` makes, or None, with `work` cancelled, when the client goes first."""
    working = asyncio.ensure_future(work)
    gone = asyncio.create_task(receive_disconnect(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, gone):
            task.cancel()
            with suppress(asyncio.CancelledError, PdEagleError):
                await task


class _App(Starlette):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[_SERVERS_SEND] = send
        await super().__call__(scope, receive, send)


def make_app(front: Front) -> Starlette:
    """Return the application for `front`."""
    routes = _Routes(front)
    table: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
        # First what is asked most: they are tried in this order.
        ("/v1/chat/completions", "POST", routes.chat),
        ("/v1/completions", "POST", routes.completion),
        ("/health", "GET", routes.health),
        ("/health/live", "GET", routes.live),
        ("/health/ready", "GET", routes.ready),
        ("/metrics", "GET", routes.metrics),
        ("/v1/models", "GET", routes.models),
        ("/v1/models/{model:path}", "GET", routes.model),
    ]
    return _App(
        routes=[
            Route(path, _with_options(handler, method), methods=[method, "OPTIONS"])
            for path, method, handler in table
        ],
        middleware=[Middleware(Turns, a_turn=_REQUESTS_A_TURN, at_once="/health")],
        exception_handlers={
            PdEagleError: _pd_eagle_error,
            HTTPException: _http_error,
            ClientDisconnect: _gone,
            Exception: _crash,
        },
    )


def _with_options(
    handler: Callable[[Request], Awaitable[Response]], method: str
) -> Callable[[Request], Awaitable[Response]]:
    allow = ", ".join(sorted({method, "OPTIONS"} | ({"HEAD"} if method == "GET" else set())))

    async def endpoint(request: Request) -> Response:
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={"allow": allow})
        return await handler(request)

    return endpoint


class _Routes:
    def __init__(self, front: Front) -> None:
        self._front = front
        self._bodies = BodyMemory(front.max_body_memory_bytes)

    def _health(self) -> Health:
        health = self._front.health()
        if health.serving and self._front.openai is None:  # the engines were faster
            return replace(health, status="starting")
        return health

    async def health(self, _: Request) -> Response:
        health = self._health()
        return json_response(health.as_json(), 200 if health.serving else 503)

    async def live(self, _: Request) -> Response:
        if self._front.failing:
            return json_response({"status": "failing"}, 503)
        return json_response({"status": "live"})

    async def ready(self, _: Request) -> Response:
        health = self._health()
        return json_response({"status": health.status}, 200 if health.serving else 503)

    async def metrics(self, request: Request) -> Response:
        accept = request.headers.get("accept", "")
        body, content_type = await asyncio.to_thread(self._front.metrics, accept)
        return Response(body, headers={"content-type": content_type})

    async def models(self, request: Request) -> Response:
        openai = self._openai(request)
        return json_response({"object": "list", "data": [_model_card(openai)]})

    async def model(self, request: Request) -> Response:
        openai = self._openai(request)
        if request.path_params["model"] != openai.model:
            raise ModelNotFound(f"the model {request.path_params['model']!r} is not served here")
        return json_response(_model_card(openai))

    async def chat(self, request: Request) -> Response:
        return await self._generate("chat", request)

    async def completion(self, request: Request) -> Response:
        return await self._generate("completion", request)

    async def _generate(self, endpoint: Endpoint, http: Request) -> Response:
        openai = self._openai(http)
        client = http.client.host if http.client else "unknown"
        with self._front.door(client):
            pass  # refused before it is read, if it would be refused now
        with ExitStack() as stack:
            async with self._bodies.body_of(http) as body:
                # Only now: one that is only half there takes nobody's place.
                stack.enter_context(self._front.door(client))
                request = await openai.parse(endpoint, body, http)
            if request.stream:
                events = await openai.stream(endpoint, request, http)
                return EventStream(events, stack.pop_all(), self._front.keep_alive_s)
            answer = await _unless_gone(openai.answer(endpoint, request, http), http.receive)
            if answer is None:
                return Response(status_code=499)  # nobody is there to read it
            return Response(answer, media_type="application/json")

    def _openai(self, request: Request) -> OpenAI:
        self._authorize(request)
        if self._front.openai is None:
            raise NotServing(f"the service is {self._health().status}")
        return self._front.openai

    def _authorize(self, request: Request) -> None:
        key = self._front.api_key
        if key is None:
            return
        given = request.headers.get("authorization", "")
        # Starlette reads headers as Latin-1: these are the bytes as they were sent, UTF-8 or not.
        if not api_keys.carries_one(key, given.encode("latin-1")):
            raise HTTPException(401, "wrong or missing key: wanted 'Authorization: Bearer KEY'")


def _model_card(openai: OpenAI) -> dict[str, Any]:
    return {
        "id": openai.model,
        "object": "model",
        "created": 0,
        "owned_by": "pd_eagle",
        "max_model_len": openai.context_length,
    }


async def _pd_eagle_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, PdEagleError)
    headers = {"retry-after": str(_RETRY_AFTER_S)} if error.status in (429, 503) else {}
    if isinstance(error, NotServing):
        headers["connection"] = "close"  # whoever asks again should find another server
    return json_response(error.as_openai(), error.status, **headers)


_HTTP_CODES = {
    401: ("authentication_error", "invalid_api_key"),
    404: ("invalid_request_error", "unknown_url"),
    405: ("invalid_request_error", "method_not_allowed"),
    413: ("invalid_request_error", "body_too_large"),
}


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind, code = _HTTP_CODES.get(error.status_code, ("invalid_request_error", "http_error"))
    message = error.detail
    if error.status_code in (404, 405):
        message = f"{request.method} {request.url.path}: {error.detail}"
    return json_response(
        openai_error(message, kind, code), error.status_code, **dict(error.headers or {})
    )


async def _crash(_: Request, error: Exception) -> Response:
    return json_response(_internal(error).as_openai(), 500)


def _internal(error: Exception) -> PdEagleError:
    return PdEagleError(f"internal error: {type(error).__name__}")


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # nobody is there to read it
