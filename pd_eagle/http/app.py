"""The Starlette application: its routes and what they need of the front.

It knows HTTP and nothing of SGLang. The service and the OpenAI layer are handed in, and may still
be starting when the first request comes.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from pd_eagle.errors import ModelNotFound, NotServing
from pd_eagle.http import openapi
from pd_eagle.http.access import authorize
from pd_eagle.http.disconnect import unless_disconnected
from pd_eagle.http.error_responses import CLIENT_CLOSED_REQUEST, HANDLERS, json_response
from pd_eagle.http.event_stream import RAW_SEND, EventStream
from pd_eagle.http.native_routes import NativeRoutes
from pd_eagle.http.pacing import Pacing
from pd_eagle.http.request_body import BodyMemory
from pd_eagle.http.request_ids import RequestIds
from pd_eagle.http.unknown_fields import IGNORED
from pd_eagle.http.unserved import UNSERVED

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from contextlib import AbstractContextManager

    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from pd_eagle.http.answers import Endpoint
    from pd_eagle.http.native_routes import Row
    from pd_eagle.requests.health import Health
    from pd_eagle.requests.operations import Operations

# About a millisecond's work, if all are refused.
_REQUESTS_PER_ITERATION = 4
_GET, _POST = ("GET",), ("POST",)


class OpenAI(Protocol):
    """The OpenAI layer as the routes use it; `pd_eagle.http.openai_api.OpenAIApi` is one."""

    model: str
    #: The path or name that the weights were loaded from, and when, in seconds since 1970.
    root: str
    created: int
    context_length: int

    @property
    def tool_call_parser(self) -> str | None: ...
    def detokenize(self, ids: list[int], /) -> str: ...
    def abort(self, rid: str | None, /) -> None: ...
    def model_info(self) -> dict[str, Any]: ...
    def schemas(self) -> dict[str, Any]: ...
    async def parse(self, endpoint: Endpoint, body: bytes, http: Request) -> Any: ...
    async def stream(
        self, endpoint: Endpoint, request: Any, http: Request
    ) -> AsyncGenerator[str, None]: ...
    async def answer(self, endpoint: Endpoint, request: Any, http: Request) -> bytes: ...
    async def stored(self, response_id: str, *, cancel: bool) -> bytes: ...


class FrontProtocol(Protocol):
    """What the routes need of the front; `pd_eagle.front.Front` is one."""

    api_key: str | None
    admin_api_key: str | None
    keep_alive_s: float
    max_body_memory_bytes: int
    operations: Operations

    @property
    def api(self) -> OpenAI | None: ...
    @property
    def failing(self) -> bool: ...
    def health(self) -> Health: ...
    def metrics(self, accept: str) -> tuple[bytes, str]: ...
    def admit(self, client: str) -> AbstractContextManager[None]: ...


class _App(Starlette):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[RAW_SEND] = send
        await super().__call__(scope, receive, send)

    def build_middleware_stack(self) -> ASGIApp:
        # Around all of it, so that a crash's response has an id too.
        return RequestIds(super().build_middleware_stack())


def make_app(front: FrontProtocol, cors_origins: str | None = None) -> Starlette:
    """Return the application for `front`; pages from `cors_origins`, with commas, may use it."""
    routes = _Routes(front)
    table: list[Row] = [
        # Starlette tries them in this order: the most frequent first.
        ("/v1/chat/completions", _POST, routes.chat),
        ("/v1/completions", _POST, routes.completion),
        ("/v1/messages", _POST, routes.messages),
        ("/v1/messages/count_tokens", _POST, routes.count_tokens),
        ("/v1/responses", _POST, routes.responses),
        ("/v1/responses/{id}", _GET, routes.response),
        ("/v1/responses/{id}/cancel", _POST, routes.cancel_response),
        ("/health", _GET, routes.health),
        ("/health/live", _GET, routes.live),
        ("/health/ready", _GET, routes.ready),
        ("/metrics", _GET, routes.metrics),
        ("/v1/models", _GET, routes.models),
        ("/v1/models/{model:path}", _GET, routes.model),
        ("/openapi.json", _GET, routes.openapi),
        ("/docs", _GET, routes.docs),
        *NativeRoutes(front, routes.generate, routes.model_info, routes.abort).rows(),
    ]
    routes.described = [(path, methods) for path, methods, _ in table if path not in UNSERVED]
    pacing = Middleware(Pacing, per_iteration=_REQUESTS_PER_ITERATION, exempt="/health")
    return _App(
        routes=[
            Route(path, _with_options(handler, methods), methods=[*methods, "OPTIONS"])
            for path, methods, handler in table
        ],
        middleware=[*_cors(cors_origins), pacing],
        exception_handlers=HANDLERS,
    )


def _cors(origins: str | None) -> list[Middleware]:
    if origins is None:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins.split(","),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["x-request-id", IGNORED, "retry-after"],
        )
    ]


def _with_options(
    handler: Callable[[Request], Awaitable[Response]], methods: tuple[str, ...]
) -> Callable[[Request], Awaitable[Response]]:
    allow = ", ".join(sorted({*methods, "OPTIONS"} | ({"HEAD"} if "GET" in methods else set())))

    async def endpoint(request: Request) -> Response:
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={"allow": allow})
        return await handler(request)

    return endpoint


class _Routes:
    def __init__(self, front: FrontProtocol) -> None:
        self._front = front
        self._bodies = BodyMemory(front.max_body_memory_bytes)
        self.described: list[tuple[str, tuple[str, ...]]] = []

    async def health(self, _: Request) -> Response:
        health = self._front.health()
        return json_response(health.as_json(), 200 if health.serving else 503)

    async def live(self, _: Request) -> Response:
        if self._front.failing:
            return json_response({"status": "failing"}, 503)
        return json_response({"status": "live"})

    async def ready(self, _: Request) -> Response:
        health = self._front.health()
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
        if request.path_params["model"] not in (openai.model, "default"):
            raise ModelNotFound(f"the model {request.path_params['model']!r} is not served here")
        return json_response(_model_card(openai))

    async def chat(self, request: Request) -> Response:
        return await self.generate("chat", request)

    async def completion(self, request: Request) -> Response:
        return await self.generate("completion", request)

    async def messages(self, request: Request) -> Response:
        return await self.generate("messages", request)

    async def count_tokens(self, request: Request) -> Response:
        return await self.generate("count_tokens", request)

    async def responses(self, request: Request) -> Response:
        return await self.generate("responses", request)

    async def response(self, request: Request) -> Response:
        return await self._stored(request, cancel=False)

    async def cancel_response(self, request: Request) -> Response:
        return await self._stored(request, cancel=True)

    async def _stored(self, request: Request, *, cancel: bool) -> Response:
        body = await self._openai(request).stored(request.path_params["id"], cancel=cancel)
        return Response(body, media_type="application/json")

    async def openapi(self, request: Request) -> Response:
        schemas = await asyncio.to_thread(self._openai(request).schemas)
        return json_response(openapi.document(self.described, schemas))

    async def docs(self, _: Request) -> Response:
        return HTMLResponse(openapi.PAGE, headers=openapi.PAGE_HEADERS)

    def model_info(self, request: Request) -> dict[str, Any]:
        return self._openai(request).model_info()

    def abort(self, rid: str | None) -> None:
        if self._front.api is not None:
            self._front.api.abort(rid)

    async def generate(self, endpoint: Endpoint, http: Request) -> Response:
        """Admit, read and answer one request for `endpoint`."""
        openai = self._openai(http)
        client = http.client.host if http.client else "unknown"
        with self._front.admit(client):
            pass  # refused before it is read, if it would be refused now
        with ExitStack() as stack:
            async with self._bodies.body_of(http) as body:
                # Only now: one that is only half there takes nobody's place.
                stack.enter_context(self._front.admit(client))
                request = await openai.parse(endpoint, body, http)
            if getattr(request, "stream", False):
                events = await openai.stream(endpoint, request, http)
                response = EventStream(events, stack.pop_all(), self._front.keep_alive_s)
                response.headers.update(_ignored(http))
                return response
            answer = await unless_disconnected(openai.answer(endpoint, request, http), http.receive)
            if answer is None:
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            if (task := getattr(http.state, "background", None)) is not None:
                held = stack.pop_all()  # one in the background keeps its place
                task.add_done_callback(lambda _: held.close())
            return Response(answer, headers=_ignored(http), media_type="application/json")

    def _openai(self, request: Request) -> OpenAI:
        authorize(request, self._front)
        if (openai := self._front.api) is None:
            raise NotServing(f"the service is {self._front.health().status}")
        return openai


def _ignored(http: Request) -> dict[str, str]:
    ignored = getattr(http.state, "ignored", ())
    return {IGNORED: ", ".join(ignored)} if ignored else {}


def _model_card(openai: OpenAI) -> dict[str, Any]:
    return {
        "id": openai.model,
        "object": "model",
        "created": openai.created,
        "owned_by": "pd_eagle",
        "root": openai.root,
        "parent": None,
        "max_model_len": openai.context_length,
    }
