"""OpenAI's Responses API as SGLang's own class answers it, with a store of bounded size.

It knows no routes.
"""

from __future__ import annotations

import sys
from contextlib import aclosing
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from fastapi.responses import ORJSONResponse
from jinja2 import TemplateError
from pydantic import PrivateAttr
from sglang.srt.entrypoints.openai.protocol import ResponsesRequest
from sglang.srt.entrypoints.openai.serving_responses import OpenAIServingResponses

from pd_eagle.errors import InvalidRequest, NotFound, PdEagleError
from pd_eagle.http.body_reading import validated
from pd_eagle.http.response_store import ResponseStore
from pd_eagle.requests.generate_api import MISREAD, sglang_message

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine

    from sglang.srt.parser.template_manager import TemplateManager
    from starlette.requests import Request as HttpRequest

    from pd_eagle.http.tokenizer_manager import TokenizerManager

#: SGLang (0.5.23) keeps two of them for the ends of a conversation.
_LEAST_OUTPUT_TOKENS = 3
#: The HTTP request of this task, which SGLang's class does not hand to where it is wanted.
_HTTP: ContextVar[HttpRequest] = ContextVar("_HTTP")


class ResponsesApi:
    """`/v1/responses`, and what was stored of it."""

    def __init__(
        self,
        facade: TokenizerManager,
        templates: TemplateManager,
        in_thread: Callable[..., Any],
        store_bytes: int,
    ) -> None:
        """`in_thread(http, work, *args)` runs work off the event loop."""
        self._serving = _Responses(facade, templates, in_thread, ResponseStore(store_bytes))

    @property
    def default_sampling_params(self) -> dict[str, Any]:
        """The model's own sampling parameters, which may be changed."""
        found: dict[str, Any] = self._serving.default_sampling_params
        return found

    def read(self, fields: dict[str, Any]) -> ResponsesRequest:
        """Return the request that `fields` hold; it is stored only where they say so."""
        fields = {"store": False} | fields
        fields.pop("request_id", None)  # ours, so that nobody's response is overwritten
        request = validated(_Request, fields)
        most = request.max_output_tokens
        if most is not None and most < _LEAST_OUTPUT_TOKENS:
            raise InvalidRequest(
                f"max_output_tokens={most}: wanted at least {_LEAST_OUTPUT_TOKENS}"
            )
        return request

    def tools(self, request: ResponsesRequest) -> list[Any]:
        """Return those tools of `request` that the model is told of."""
        found: list[Any] = self._serving._response_tools_to_chat_tools(request)
        return found

    async def stream(
        self, request: ResponsesRequest, http: HttpRequest
    ) -> AsyncGenerator[str, None]:
        """Return the server-sent events; raises what is wrong with the request itself."""
        events: AsyncGenerator[str, None] = await self._create(request, http)
        return events

    async def answer(self, request: ResponsesRequest, http: HttpRequest) -> bytes:
        """Return the JSON of a response that is not streamed.

        The task of one in the background is left in `http.state.background`.
        """
        response = await self._create(request, http)
        http.state.background = self._serving.background_tasks.get(response.id)
        body: bytes = response.model_dump_json().encode()
        return body

    async def _create(self, request: ResponsesRequest, http: HttpRequest) -> Any:
        _HTTP.set(http)
        try:
            return _unless_refused(await self._serving.create_responses(request, http))
        except _Unreadable as unreadable:
            raise unreadable.error from unreadable.__cause__

    async def stored(self, response_id: str, *, cancel: bool) -> bytes:
        """Return the JSON of a stored response, which `cancel` ends; raises `NotFound`."""
        serving = self._serving
        find = serving.cancel_responses if cancel else serving.retrieve_responses
        body: bytes = _unless_refused(await find(response_id)).model_dump_json().encode()
        return body


class _Refused(ORJSONResponse):
    """What SGLang's class returns, or stores, in place of a response."""

    def __init__(self, error: PdEagleError) -> None:
        super().__init__(error.as_openai(), error.status)
        self.error = error


def _unless_refused(result: Any) -> Any:
    if isinstance(result, _Refused):
        raise result.error
    return result


class _Request(ResponsesRequest):  # type: ignore[misc]
    """A request that keeps its conversation, which the store may let go while it runs."""

    _history: list[Any] | None = PrivateAttr(default=None)


class _Unreadable(Exception):
    """Carries an error past SGLang's handlers, which log a traceback for a client's mistake."""

    def __init__(self, error: PdEagleError) -> None:
        super().__init__(error.message)
        self.error = error


class _Responses(OpenAIServingResponses):  # type: ignore[misc]
    """SGLang's class (0.5.23), over a store of ours, and with our errors."""

    def __init__(
        self,
        facade: TokenizerManager,
        templates: TemplateManager,
        in_thread: Callable[..., Any],
        store: ResponseStore,
    ) -> None:
        super().__init__(facade, templates, enable_prompt_tokens_details=True)
        self.response_store = store
        self.msg_store = store.messages
        self.enable_response_store = True
        self._in_thread = in_thread

    def create_error_response(
        self, message: str, err_type: str = "", status_code: int = 400, param: str | None = None
    ) -> _Refused:
        current = sys.exc_info()[1]  # where it is called in an except block
        if isinstance(current, PdEagleError):
            return _Refused(current)
        if status_code == NotFound.status:
            return _Refused(NotFound(message))
        return _Refused(InvalidRequest(f"{param}: {message}" if param else message))

    def _response_input_history(self, request: _Request) -> list[Any]:
        if request._history is None:
            request._history = super()._response_input_history(request)
        return list(request._history)

    async def _make_request(self, request: _Request, *args: Any, **options: Any) -> Any:
        self._response_input_history(request)  # here, where nothing else runs
        make = super()._make_request
        try:
            # Off the loop: it validates tools, renders the template and tokenizes the prompt. It
            # awaits nothing.
            return await self._in_thread(_HTTP.get(), lambda: _run(make(request, *args, **options)))
        except MISREAD as error:
            raise _Unreadable(InvalidRequest(sglang_message(error))) from error
        except (RuntimeError, TemplateError) as error:
            raise _Unreadable(InvalidRequest(f"{type(error).__name__}: {error}")) from error
        except PdEagleError as error:
            raise _Unreadable(error) from error

    async def responses_full_generator(self, request: _Request, *args: Any, **options: Any) -> Any:
        try:
            result = await super().responses_full_generator(request, *args, **options)
        except PdEagleError as error:
            result = _Refused(error)
        stored = self.response_store.get(request.request_id)
        if isinstance(result, _Refused) and stored is not None:
            stored.error = {"code": result.error.code, "message": result.error.message}
        return result

    def responses_stream_generator_non_harmony(self, *args: Any, **options: Any) -> Any:
        return _when_begun(super().responses_stream_generator_non_harmony, *args, **options)

    def responses_stream_generator(self, *args: Any, **options: Any) -> Any:
        return _when_begun(super().responses_stream_generator, *args, **options)


async def _when_begun(
    make: Callable[..., AsyncGenerator[str, None]],
    request: _Request,
    sampling_params: Any,
    results: AsyncGenerator[Any, None],
    *args: Any,
    **options: Any,
) -> AsyncGenerator[str, None]:
    """Yield SGLang's events from the first result on: an error before it is an ordinary response,
    where SGLang would have said that the response has begun.
    """
    async with aclosing(results):
        first = await anext(results)

        async def all_results() -> AsyncGenerator[Any, None]:
            yield first
            async for result in results:
                yield result

        async with aclosing(
            make(request, sampling_params, all_results(), *args, **options)
        ) as events:
            async for event in events:
                yield event


def _run(work: Coroutine[None, None, Any]) -> Any:
    """Return what a coroutine that awaits nothing returns."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it awaits something")
