"""Anthropic's Messages API over the chat endpoint, as SGLang's own class translates it.

It knows no routes, and nothing of how a chat request is answered.
"""

from __future__ import annotations

import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import orjson
from sglang.srt.entrypoints.anthropic.protocol import (
    AnthropicCountTokensRequest,
    AnthropicMessagesRequest,
)
from sglang.srt.entrypoints.anthropic.serving import AnthropicServing

from pd_eagle.errors import InvalidRequest, PdEagleError
from pd_eagle.http.body_reading import validated
from pd_eagle.http.preambles import without_preamble
from pd_eagle.requests.generate_api import MISREAD, sglang_message

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest
    from starlette.requests import Request as HttpRequest

    from pd_eagle.http.answers import Results


class Chat(Protocol):
    """The chat endpoint; `pd_eagle.http.openai_api.OpenAIApi` has it."""

    async def chat_events(
        self, request: ChatCompletionRequest, http: HttpRequest
    ) -> AsyncGenerator[str, None]: ...
    async def chat_results(
        self, request: ChatCompletionRequest, http: HttpRequest
    ) -> tuple[ChatCompletionRequest, Results]: ...
    async def chat_tokens(self, request: ChatCompletionRequest, http: HttpRequest) -> int: ...


@dataclass(frozen=True, slots=True)
class MessagesRequest:
    """A request as it came, and as a chat request."""

    original: AnthropicMessagesRequest
    chat: ChatCompletionRequest
    count_only: bool

    @property
    def stream(self) -> bool:
        return bool(self.original.stream) and not self.count_only


class MessagesApi:
    """`/v1/messages` and `/v1/messages/count_tokens`."""

    def __init__(self, chat: Chat, serving: Any, preambles: Sequence[str]) -> None:
        """`serving` is SGLang's chat class. Lines at the beginning of `system` that begin with one
        of `preambles` are left out.
        """
        self._chat = chat
        self._serving = serving
        self._anthropic = AnthropicServing(serving)
        self._preambles = tuple(preambles)

    def read(self, fields: dict[str, Any], *, count_only: bool) -> MessagesRequest:
        """Return the request that `fields` hold; raises `InvalidRequest`."""
        if count_only:
            counted = validated(AnthropicCountTokensRequest, fields)
            fields = {"max_tokens": 1} | {
                name: fields[name] for name in type(counted).model_fields if name in fields
            }
        system = without_preamble(fields.get("system"), self._preambles)
        original = validated(AnthropicMessagesRequest, fields | {"system": system})
        try:
            chat = self._anthropic._convert_to_chat_completion_request(original)
        except MISREAD as error:
            raise InvalidRequest(sglang_message(error)) from error
        return MessagesRequest(original, chat, count_only)

    async def stream(
        self, request: MessagesRequest, http: HttpRequest
    ) -> AsyncGenerator[str, None]:
        """Return the server-sent events; raises what is wrong with the request itself."""
        request.original.model = request.chat.model
        return self._events(await self._chat.chat_events(request.chat, http), request)

    async def _events(
        self, chunks: AsyncGenerator[str, None], request: MessagesRequest
    ) -> AsyncGenerator[str, None]:
        async with aclosing(chunks):
            # An error before it is an ordinary error response.
            first = await anext(chunks)
            begun = AnthropicServing(_Begun(first, chunks))
            events = begun._generate_anthropic_stream(None, None, request.original, None)
            async with aclosing(events):
                async for event in events:
                    yield event

    async def answer(self, request: MessagesRequest, http: HttpRequest) -> bytes:
        """Return the JSON of a message that is not streamed, or of a count of tokens."""
        if request.count_only:
            return orjson.dumps({"input_tokens": await self._chat.chat_tokens(request.chat, http)})
        processed, results = await self._chat.chat_results(request.chat, http)
        response = self._serving._build_chat_response(processed, results, int(time.time()))
        message = self._anthropic._convert_response(response)
        body: bytes = message.model_dump_json(exclude_none=True).encode()
        return body


class _Begun:
    """A chat endpoint whose stream has begun, as SGLang's class (0.5.23) reads it."""

    supports_inline_system = False

    def __init__(self, first: str, chunks: AsyncGenerator[str, None]) -> None:
        self._first = first
        self._chunks = chunks

    async def _generate_chat_stream(self, *_: object) -> AsyncGenerator[str, None]:
        yield self._first
        try:
            async for chunk in self._chunks:
                yield chunk
        except PdEagleError as error:  # in the form from which it makes an error event
            told = {"message": error.message, "code": error.status}
            yield f"data: {orjson.dumps({'error': told}).decode()}\n\n"
