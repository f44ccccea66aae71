"""SGLang's own OpenAI serving classes over the service.

Chat templates, tools, reasoning, grammar, logprobs, usage and chunks are SGLang's. This module has
the object that they use as their tokenizer manager, and passes requests through them. It knows
nothing of routes or status codes.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import HTTPException
from sglang.srt.entrypoints.anthropic.protocol import (
    AnthropicCountTokensRequest,
    AnthropicMessagesRequest,
)
from sglang.srt.entrypoints.openai.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    ResponsesRequest,
)
from sglang.srt.entrypoints.openai.serving_chat import OpenAIServingChat
from sglang.srt.entrypoints.openai.serving_completions import OpenAIServingCompletion
from sglang.srt.parser.template_manager import TemplateManager
from sglang.srt.runtime_context import get_serving

from pd_eagle.errors import InvalidRequest, ModelNotFound, PdEagleError
from pd_eagle.http import answers, bodies, body_reading, native_api, request_schemas, unknown_fields
from pd_eagle.http.agent_bodies import TABLES
from pd_eagle.http.anthropic_api import MessagesApi
from pd_eagle.http.api_options import ApiOptions
from pd_eagle.http.native_api import NativeApi
from pd_eagle.http.responses_api import ResponsesApi
from pd_eagle.http.tokenizer_manager import TokenizerManager
from pd_eagle.plan import tool_parsers
from pd_eagle.requests.generate_api import MISREAD, sglang_message

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Set
    from typing import NoReturn

    from starlette.requests import Request as HttpRequest

    from pd_eagle.http.answers import Endpoint
    from pd_eagle.requests.service import Service

#: Smaller bodies are parsed on the event loop, in about a millisecond.
_INLINE_BODY_BYTES = 2**13
#: Larger ones are parsed and rendered one at a time, in a thread of their own.
_LARGE_BODY_BYTES = 2**18
#: orjson and pydantic hold the GIL, for about 0.1 µs a value.
_MOST_VALUES = 2**18  # an object counts as 8, a string as 2

#: The fields that SGLang's class of an endpoint knows; its validators read one that is no field.
KNOWN_FIELDS: Mapping[str, Set[str]] = {
    "chat": ChatCompletionRequest.model_fields.keys() | {"reasoning"},
    "completion": CompletionRequest.model_fields.keys(),
    "messages": AnthropicMessagesRequest.model_fields.keys(),
    "count_tokens": AnthropicCountTokensRequest.model_fields.keys(),
    "responses": ResponsesRequest.model_fields.keys(),
    **native_api.KNOWN_FIELDS,
}


class OpenAIApi:
    """The OpenAI endpoints as SGLang answers them."""

    def __init__(
        self,
        service: Service,
        engine_args: Mapping[str, Any],
        options: ApiOptions = ApiOptions(),  # noqa: B008 - frozen
    ) -> None:
        """Set up SGLang's serving classes in this process.

        `engine_args` are those of the engines that answer, without what makes them PD or
        speculative: templates and parsers must be the same on both sides of the socket.
        """
        facade = TokenizerManager(service, engine_args)
        templates = TemplateManager()
        serving = get_serving()
        templates.initialize_templates(
            tokenizer_manager=facade,
            model_path=facade.model_path,
            chat_template=serving.chat_template,
            completion_template=serving.completion_template,
        )
        self._threads = {
            "small": ThreadPoolExecutor(1, "pd_eagle-template"),
            "large": ThreadPoolExecutor(1, "pd_eagle-large"),
        }
        self._service = service
        self._facade = facade
        self.detokenize = facade.detokenize
        self.model = facade.served_model_name
        self.root = facade.model_path
        self.created = int(time.time())
        self.context_length: int = facade.model_config.context_len
        self.tool_parser = facade.choose_tool_parser(templates)
        self._serving: dict[Endpoint, Any] = {
            "chat": _Chat(facade, templates),
            "completion": _Completion(facade, templates),
        }
        self._messages = MessagesApi(self, self._serving["chat"], options.preambles)
        self._responses = ResponsesApi(
            facade, templates, self._in_thread, options.response_store_bytes
        )
        self._strict_fields = options.strict_fields
        self._native = NativeApi(service, facade, self._serving["chat"], self._in_thread)
        self.model_info = self._native.model_info
        self.schemas = functools.cache(request_schemas.schemas)
        if service.eagle_rules is not None:
            for defaults in (
                self._serving["chat"].default_sampling_params,
                self._responses.default_sampling_params,
            ):
                service.eagle_rules.correct_defaults(defaults)

    @property
    def tool_call_parser(self) -> str | None:
        return self.tool_parser.name

    def abort(self, rid: str | None) -> None:
        """End the requests that were given `rid`, or all; their finish reason is `abort`."""
        self._facade.abort(rid)
        self._native.abort(rid)

    async def parse(self, endpoint: Endpoint, body: bytes, http: HttpRequest) -> Any:
        """Return the request that `body` holds; its `timeout`, in seconds, goes into `http.state`.

        Raises `InvalidRequest` for what is not a request, `ModelNotFound` for another model's.
        """
        http.state.large = len(body) > _LARGE_BODY_BYTES
        if len(body) <= _INLINE_BODY_BYTES:
            return self._parse(endpoint, body, http)
        return await self._in_thread(http, self._parse, endpoint, body, http)

    async def _in_thread(self, http: HttpRequest, work: Callable[..., Any], *args: Any) -> Any:
        """Run `work` off the loop.

        One at a time: several threads that compete for the GIL starve the event loop. Large
        requests wait for each other; small ones do not wait for large ones.
        """
        threads = self._threads["large" if http.state.large else "small"]
        return await asyncio.get_running_loop().run_in_executor(threads, work, *args)

    def _parse(self, endpoint: Endpoint, body: bytes, http: HttpRequest) -> Any:
        fields = body_reading.load(body, max(_MOST_VALUES, 2 * self.context_length))
        http.state.timeout_s = body_reading.timeout_s(
            fields.pop("timeout", None), self._service.request_timeout_s
        )
        native = endpoint in native_api.ENDPOINTS
        if not native:
            bodies.check(fields, self._service.limits, self._service.places, TABLES[endpoint])
        http.state.ignored = unknown_fields.take(
            fields, endpoint, KNOWN_FIELDS[endpoint], strict=self._strict_fields
        )
        if native:
            return self._native.read(endpoint, fields)
        if endpoint in ("messages", "count_tokens"):
            message = self._messages.read(fields, count_only=endpoint == "count_tokens")
            self._check(message.chat)
            return message
        if endpoint == "responses":
            request = self._responses.read(fields)
        else:
            request_class = ChatCompletionRequest if endpoint == "chat" else CompletionRequest
            request = body_reading.validated(request_class, fields)
        self._check(request)
        return request

    def _check(self, request: Any) -> None:
        if request.model not in ("default", None, self.model):
            raise ModelNotFound(
                f"the model {request.model!r} is not served here: wanted {self.model!r}"
            )
        request.model = self.model
        self._check_tools(request)
        scores = isinstance(request, CompletionRequest) and request.echo  # the prompt alone
        least = 0 if scores else 1
        for name in ("max_tokens", "max_completion_tokens"):
            value = getattr(request, name, None)
            if value is not None and value < least:
                raise InvalidRequest(f"{name}={value}: wanted at least {least}")

    def _check_tools(self, request: Any) -> None:
        """Refuse tools for which no parser is known: their calls would be sent as text."""
        if self.tool_parser.name is not None or isinstance(request, CompletionRequest):
            return
        if isinstance(request, ChatCompletionRequest):
            tools = self._serving["chat"]._effective_tools(request)
        else:
            tools = self._responses.tools(request)
        if request.tool_choice != "none" and tools:
            raise InvalidRequest(
                f"tools: no parser of tool calls is known for {self.model} "
                f"({self.tool_parser.reason}): wanted {tool_parsers.VARIABLE} set on the server "
                "to the one this model was trained for, or tool_choice 'none'"
            )

    async def stream(
        self, endpoint: Endpoint, request: Any, http: HttpRequest
    ) -> AsyncGenerator[str, None]:
        """Return the server-sent events of a streamed request.

        What is wrong with the request itself is raised here, before the first event.
        """
        if endpoint == "messages":
            return await self._messages.stream(request, http)
        if endpoint == "responses":
            return await self._responses.stream(request, http)
        if endpoint in native_api.ENDPOINTS:
            return await self._native.stream(endpoint, request, http)
        return await self._events(endpoint, request, http)

    async def _events(
        self, endpoint: Endpoint, request: Any, http: HttpRequest
    ) -> AsyncGenerator[str, None]:
        serving = self._serving[endpoint]
        adapted, processed = await self._convert(serving, request, http)
        # SGLang (0.5.23) reads pydantic private attributes on every chunk; copying them into
        # `__dict__` skips pydantic's slow `__getattr__`, a tenth of a chunk's cost.
        vars(processed).update(processed.__pydantic_private__ or {})
        make = "_generate_chat_stream" if endpoint == "chat" else "_generate_completion_stream"
        events: AsyncGenerator[str, None] = getattr(serving, make)(adapted, processed, http)
        return events

    async def answer(self, endpoint: Endpoint, request: Any, http: HttpRequest) -> bytes:
        """Return the JSON of a response that is not streamed."""
        if endpoint in ("messages", "count_tokens"):
            return await self._messages.answer(request, http)
        if endpoint == "responses":
            return await self._responses.answer(request, http)
        if endpoint in native_api.ENDPOINTS:
            return await self._native.answer(endpoint, request, http)
        serving = self._serving[endpoint]
        processed, results = await self._results(serving, request, http)
        if not answers.is_large(results):
            return answers.build(serving, endpoint, processed, results)
        http.state.large = True
        body: bytes = await self._in_thread(
            http, answers.build, serving, endpoint, processed, results
        )
        return body

    async def stored(self, response_id: str, *, cancel: bool) -> bytes:
        """Return the JSON of a stored response, which `cancel` ends; raises `NotFound`."""
        return await self._responses.stored(response_id, cancel=cancel)

    async def _results(
        self, serving: Any, request: Any, http: HttpRequest
    ) -> tuple[Any, answers.Results]:
        adapted, processed = await self._convert(serving, request, http)
        # SGLang's `_handle_non_streaming_request` (0.5.23) builds it on the event loop.
        async with aclosing(self._facade.generate_request(adapted, http)) as found:
            results = await anext(found)
        return processed, results if isinstance(results, list) else [results]

    # --- the chat endpoint, for what is translated to it

    async def chat_events(
        self, request: ChatCompletionRequest, http: HttpRequest
    ) -> AsyncGenerator[str, None]:
        """Return the server-sent events of a streamed chat request."""
        return await self._events("chat", request, http)

    async def chat_results(
        self, request: ChatCompletionRequest, http: HttpRequest
    ) -> tuple[ChatCompletionRequest, answers.Results]:
        """Return a chat request as SGLang read it, and its results."""
        return await self._results(self._serving["chat"], request, http)

    async def chat_tokens(self, request: ChatCompletionRequest, http: HttpRequest) -> int:
        """Return how many tokens the prompt of a chat request has."""
        adapted, _ = await self._convert(self._serving["chat"], request, http)
        if adapted.input_ids is not None:
            return len(adapted.input_ids)
        return len(await self._in_thread(http, self._facade.tokenizer.encode, adapted.text))

    async def _convert(self, serving: Any, request: Any, http: HttpRequest) -> tuple[Any, Any]:
        try:
            # Off the loop: it validates tools, renders the template and tokenizes the prompt.
            converted: tuple[Any, Any] = await self._in_thread(
                http, _validate_and_convert, serving, request, http
            )
        except HTTPException as error:
            raise InvalidRequest(str(error.detail)) from error
        except MISREAD as error:
            raise InvalidRequest(sglang_message(error)) from error
        return converted


class _RaisesErrors:
    """Turns SGLang's own error responses into our errors, so that there is one shape of error."""

    def create_error_response(self, message: str, *_: object, **__: object) -> NoReturn:
        raise InvalidRequest(message)

    def create_streaming_error_response(self, message: str, *_: object, **__: object) -> str:
        # Called in the except block of SGLang's generators (0.5.23): the error itself is at hand.
        current = sys.exc_info()[1]
        error = current if isinstance(current, PdEagleError) else PdEagleError(message)
        return orjson.dumps(error.as_openai()).decode()


class _Chat(_RaisesErrors, OpenAIServingChat):  # type: ignore[misc]
    pass


class _Completion(_RaisesErrors, OpenAIServingCompletion):  # type: ignore[misc]
    pass


def _validate_and_convert(serving: Any, request: Any, http: HttpRequest) -> Any:
    if message := serving._validate_request(request):
        raise InvalidRequest(message[: body_reading.LONGEST_MESSAGE])
    return serving._convert_to_internal_request(request, http)
