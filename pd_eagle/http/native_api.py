"""SGLang's own routes over the service, answered by SGLang's own classes.

`/generate`, tokenizing and scoring; what they take and give is SGLang's (0.5.23). It knows nothing
of routes or status codes.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import TypeAdapter
from sglang.srt.entrypoints.api_contract import generate_contract_error
from sglang.srt.entrypoints.openai.protocol import (
    ChatCompletionRequest,
    DetokenizeRequest,
    ScoringRequest,
    TokenizeRequest,
)
from sglang.srt.entrypoints.openai.serving_score import OpenAIServingScore
from sglang.srt.entrypoints.openai.serving_tokenize import (
    OpenAIServingDetokenize,
    OpenAIServingTokenize,
)
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.managers.tokenizer_manager_score_mixin import TokenizerManagerScoreMixin
from sglang.srt.utils.json_response import dumps_json
from sglang.version import __version__ as SGLANG_VERSION

from pd_eagle.errors import InvalidRequest, ModelNotFound, PdEagleError
from pd_eagle.http import answers, body_reading, native_bodies
from pd_eagle.requests.generate_api import GenerateApi

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Set
    from typing import NoReturn

    from starlette.requests import Request as HttpRequest

    from pd_eagle.requests.service import Service

ENDPOINTS = ("generate", "vertex", "tokenize", "detokenize", "score")

_LONGEST_MESSAGE = 4000


class _Generate:
    """SGLang's dataclass, read as a pydantic model is."""

    model_validate = TypeAdapter(GenerateReqInput).validate_python


_CLASSES: dict[str, Any] = {
    "generate": _Generate,
    "tokenize": TokenizeRequest,
    "detokenize": DetokenizeRequest,
    "score": ScoringRequest,
}


#: The fields that SGLang's class of an endpoint knows.
KNOWN_FIELDS: dict[str, Set[str]] = {
    "generate": {field.name for field in fields(GenerateReqInput)},
    "vertex": {"instances", "parameters"},
    # What it does not know itself goes to the chat request that it makes.
    "tokenize": TokenizeRequest.model_fields.keys() | ChatCompletionRequest.model_fields.keys(),
    "detokenize": DetokenizeRequest.model_fields.keys(),
    "score": ScoringRequest.model_fields.keys(),
}


class Facade(Protocol):
    """What SGLang's classes see as their tokenizer manager; `TokenizerManager` is one."""

    server_args: Any
    model_config: Any
    model_path: str
    served_model_name: str
    tokenizer: Any
    request_logger: Any

    def config_value(self, name: str) -> Any: ...


class NativeApi:
    """SGLang's own endpoints."""

    def __init__(
        self,
        service: Service,
        facade: Facade,
        chat: Any,
        in_thread: Callable[..., Coroutine[Any, Any, Any]],
    ) -> None:
        """`chat` is SGLang's chat class; `in_thread(http, work, *args)` runs work off the loop."""
        self._service = service
        self._facade = facade
        self._in_thread = in_thread
        self._manager = _Manager(service, facade)
        self._tokenize = _Tokenize(self._manager)
        self._tokenize.chat_serving = chat
        self._detokenize = _Detokenize(self._manager)
        self._score = _Score(self._manager)

    def read(self, endpoint: str, body: dict[str, Any]) -> Any:
        """Return the request that `body` holds. Raises `InvalidRequest`, `ModelNotFound`."""
        if endpoint == "vertex":
            endpoint, body = "generate", _of_vertex(body)
        native_bodies.CHECKS[endpoint](body, self._service.limits, self._service.places)
        if endpoint == "generate" and (wrong := generate_contract_error(body)):
            raise InvalidRequest(wrong[:_LONGEST_MESSAGE])
        request = body_reading.validated(_CLASSES[endpoint], body)
        self._name_model(request)
        return request

    def _name_model(self, request: Any) -> None:
        asked, served = getattr(request, "model", None), self._facade.served_model_name
        if asked not in (None, "default", served):
            raise ModelNotFound(f"the model {asked!r} is not served here: wanted {served!r}")
        if asked is not None:
            request.model = served

    async def stream(
        self, endpoint: str, request: Any, http: HttpRequest
    ) -> AsyncGenerator[str, None]:
        """Return the server-sent events of a streamed `/generate`: each has the whole so far."""
        if endpoint != "generate":
            raise InvalidRequest(f"stream: wanted false, {endpoint} answers as a whole")
        return self._events(request, http)

    async def _events(self, request: Any, http: HttpRequest) -> AsyncGenerator[str, None]:
        async with aclosing(self._manager.generate_request(request, http)) as results:
            async for result in results:
                if request.is_single and request.parallel_sample_num == 1:
                    result.pop("index", None)  # as SGLang
                yield f"data: {dumps_json(result).decode()}\n\n"
        yield "data: [DONE]\n\n"

    async def answer(self, endpoint: str, request: Any, http: HttpRequest) -> bytes:
        """Return the JSON of a response that is not streamed."""
        if endpoint in ("tokenize", "detokenize"):
            serving = self._tokenize if endpoint == "tokenize" else self._detokenize
            found: bytes = await self._in_thread(http, _at_once, serving, request, http)
            return found
        if endpoint == "score":
            response = await self._score._handle_non_streaming_request(request, request, http)
            scored: bytes = response.body
            return scored
        async with aclosing(self._manager.generate_request(request, http)) as results:
            result = await anext(results)
        small = not answers.is_large(result if isinstance(result, list) else [result])
        result = {"predictions": result} if endpoint == "vertex" else result
        if small:
            whole: bytes = dumps_json(result)
            return whole
        http.state.large = True
        built: bytes = await self._in_thread(http, dumps_json, result)
        return built

    def abort(self, rid: str | None) -> None:
        """End the requests that were given `rid`, or all."""
        self._manager.abort(rid)

    # --- what the server says of itself

    def model_info(self) -> dict[str, Any]:
        """Return what SGLang's `/model_info` says."""
        facade, config = self._facade, self._facade.model_config
        told = ("weight_version", "load_format", "reasoning_parser", "tool_call_parser")
        return {
            "model_path": facade.model_path,
            "served_model_name": facade.served_model_name,
            "tokenizer_path": facade.config_value("tokenizer_path") or facade.model_path,
            "is_generation": True,
            "preferred_sampling_params": facade.config_value("preferred_sampling_params"),
            **{name: facade.config_value(name) for name in (*told, "disaggregation_mode")},
            "has_image_understanding": config.is_image_understandable_model,
            "has_audio_understanding": config.is_audio_understandable_model,
            "model_type": getattr(config.hf_config, "model_type", None),
            "architectures": getattr(config.hf_config, "architectures", None),
        }

    def server_args(self) -> dict[str, Any]:
        """Return the arguments of the engines that answer, with SGLang's version."""
        arguments: dict[str, Any] = self._facade.server_args.resolved_dict()
        return arguments | {"version": SGLANG_VERSION}


class _Manager(TokenizerManagerScoreMixin, GenerateApi):  # type: ignore[misc]
    """SGLang's tokenizer manager as its own routes see it: results are the whole so far."""

    is_generation = True

    def __init__(self, service: Service, facade: Facade) -> None:
        self.server_args = facade.server_args
        self.model_config = facade.model_config
        self.model_path = facade.model_path
        self.served_model_name = facade.served_model_name
        self.request_logger = facade.request_logger
        self.config_value = facade.config_value
        GenerateApi.__init__(self, service, facade.tokenizer, incremental=False)


class _RaisesErrors:
    """Turns SGLang's own error responses into our errors, so that there is one shape of error."""

    def create_error_response(
        self, message: str, *_: object, status_code: int = 400, **__: object
    ) -> NoReturn:
        if status_code >= 500:
            raise PdEagleError(message)
        raise InvalidRequest(message[:_LONGEST_MESSAGE])


class _Tokenize(_RaisesErrors, OpenAIServingTokenize):  # type: ignore[misc]
    pass


class _Detokenize(_RaisesErrors, OpenAIServingDetokenize):  # type: ignore[misc]
    pass


class _Score(_RaisesErrors, OpenAIServingScore):  # type: ignore[misc]
    pass


def _of_vertex(body: dict[str, Any]) -> dict[str, Any]:
    """Return the `/generate` body of a Vertex AI one, whose instances are the prompts."""
    instances, parameters = body.get("instances"), body.get("parameters") or {}
    if not isinstance(instances, list) or not instances or not isinstance(parameters, dict):
        raise InvalidRequest("instances, parameters: wanted a list of prompts and an object")
    if not all(isinstance(one, dict) for one in instances):
        raise InvalidRequest('instances: wanted objects such as {"text": …}')
    name = next((name for name in ("text", "input_ids") if instances[0].get(name)), "text")
    parameters = {k: v for k, v in parameters.items() if k != "stream"}
    return {name: [one.get(name) for one in instances], **parameters}


def _at_once(serving: Any, request: Any, http: HttpRequest) -> bytes:
    """Return the JSON of a handler of SGLang's (0.5.23) that is a coroutine and never waits."""
    try:
        serving._handle_non_streaming_request(request, request, http).send(None)
    except StopIteration as done:
        body: str = done.value.model_dump_json()
        return body.encode()
    raise AssertionError("SGLang's handler waits")
