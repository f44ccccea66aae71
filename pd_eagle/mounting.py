"""The HTTP application of a front in another thread, as ASGI for the caller's own server.

Requests run in the front's event loop; what they receive and send crosses to the loop of the server
that the application is mounted in. It knows no route.
"""

from __future__ import annotations

import asyncio
import pkgutil
from typing import TYPE_CHECKING, Any

from pd_eagle.errors import NotServing
from pd_eagle.http.api_options import ApiOptions
from pd_eagle.http.app import make_app
from pd_eagle.http.error_responses import json_response

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from pd_eagle.front import Front
    from pd_eagle.front_thread import FrontThread


def application(front: Front[Any], thread: FrontThread, owner: object) -> Mounted:
    """Return all routes of the server over `front`, whose loop `thread` runs.

    `owner` lives as long as the application. Loading SGLang's serving classes takes seconds.
    """
    deployment = front.deployment
    make = pkgutil.resolve_name(deployment.stack.openai)
    options = ApiOptions.of(deployment.settings)
    served: Any = _HttpFront(front, make(front.service, deployment.front_args(), options))
    app: ASGIApp = make_app(served, deployment.settings.cors_origins)
    if front.tracing is not None:
        app = front.tracing.over(app)
    return Mounted(app, thread, owner)


class Mounted:
    """An ASGI application that runs `app` in the loop of `thread`."""

    def __init__(self, app: ASGIApp, thread: FrontThread, owner: object = None) -> None:
        self._app = app
        self._thread = thread
        self._owner = owner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection. Cancelling it cancels it in the other loop.

        An engine that has been shut down answers 503.
        """
        try:
            await self._serve(scope, receive, send)
        except NotServing as error:
            if scope["type"] != "http":
                raise
            await json_response(error.as_openai(), error.status)(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        here = asyncio.get_running_loop()
        begun = False

        async def receive_there() -> Message:
            message: Message = await _in_loop(here, receive())
            return message

        async def send_there(message: Message) -> None:
            nonlocal begun
            begun = True
            await _in_loop(here, send(message))

        self._thread.check_usable()
        # A copy: Starlette keeps objects of its own loop in it.
        running = self._thread.submit(_awaited(self._app(dict(scope), receive_there, send_there)))
        try:
            await asyncio.wrap_future(running)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if begun or (task is not None and task.cancelling()):
                raise
            raise NotServing("this PDEngine has been shut down") from None


async def _awaited(work: Awaitable[None]) -> None:
    await work


async def _in_loop(loop: asyncio.AbstractEventLoop, work: Any) -> Any:
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))


class _HttpFront:
    """A front whose API is that of the HTTP routes, beside its own."""

    def __init__(self, front: Front[Any], api: Any) -> None:
        self._front = front
        self.api = api

    def __getattr__(self, name: str) -> Any:
        return getattr(self._front, name)
