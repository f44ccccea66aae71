"""`generate` and `async_generate` as `sglang.Engine` has them, over a front in another thread.

It knows neither settings nor how the front starts and ends.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, overload

from tqdm.auto import tqdm

from pd_eagle.errors import InvalidRequest
from pd_eagle.relay import Relay

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator
    from typing import Literal, Unpack

    from pd_eagle.call_types import GenerateOptions, GenerateResult, ManyParams, Params
    from pd_eagle.front_thread import FrontThread
    from pd_eagle.requests.generate_api import GenerateApi

#: Of `sglang.Engine.generate`, but decided here for every request.
_OURS = (
    *("bootstrap_host", "bootstrap_port", "bootstrap_room", "routed_dp_rank"),
    *("data_parallel_rank", "disagg_prefill_dp_rank", "kv_hints", "rid_prefix"),
)


class Generating:
    """The calls that answer prompts."""

    _thread: FrontThread
    _api: GenerateApi
    _input_class: Any

    @overload
    def generate(
        self,
        prompt: str,
        sampling_params: Params | None = None,
        *,
        stream: Literal[False] = False,
        progress: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> GenerateResult: ...
    @overload
    def generate(
        self,
        prompt: list[str],
        sampling_params: ManyParams | None = None,
        *,
        stream: Literal[False] = False,
        progress: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> list[GenerateResult]: ...
    @overload
    def generate(
        self,
        prompt: str | list[str] | None = None,
        sampling_params: ManyParams | None = None,
        input_ids: list[int] | list[list[int]] | None = None,
        *,
        messages: list[Any] | None = None,
        stream: Literal[True],
        progress: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> Generator[GenerateResult, None, None]: ...
    @overload
    def generate(
        self,
        prompt: str | list[str] | None = None,
        sampling_params: ManyParams | None = None,
        input_ids: list[int] | list[list[int]] | None = None,
        *,
        messages: list[Any] | None = None,
        stream: bool = False,
        progress: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> Any: ...

    def generate(
        self,
        prompt: str | list[str] | None = None,
        sampling_params: ManyParams | None = None,
        input_ids: list[int] | list[list[int]] | None = None,
        *,
        messages: list[Any] | None = None,
        stream: bool = False,
        progress: bool = False,
        **options: Any,
    ) -> Any:
        """Generate as `sglang.Engine.generate` does: a dictionary, or a list for several prompts.

        `messages` (a chat, or a list of chats) takes the place of `prompt`; `options` are the
        further arguments of `sglang.Engine.generate`. With `stream`, an iterator of results
        so far; with `progress`, a bar that counts answered prompts. A list may have any length:
        its prompts are begun as others end. Raises `PdEagleError`; what is wrong with the request
        is a `ValueError` too.
        """
        obj = self._input(prompt, sampling_params, input_ids, messages, stream, options)
        results = self._results(obj, progress)
        if stream:
            relay = self._relay(obj)
            return relay.drain(partial(self._begin, relay, results))
        return self._thread.call(_only(results))

    @overload
    async def async_generate(
        self,
        prompt: str,
        sampling_params: Params | None = None,
        *,
        stream: Literal[False] = False,
        progress: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> GenerateResult: ...
    @overload
    async def async_generate(
        self,
        prompt: list[str],
        sampling_params: ManyParams | None = None,
        *,
        stream: Literal[False] = False,
        progress: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> list[GenerateResult]: ...
    @overload
    async def async_generate(
        self,
        prompt: str | list[str] | None = None,
        sampling_params: ManyParams | None = None,
        input_ids: list[int] | list[list[int]] | None = None,
        *,
        messages: list[Any] | None = None,
        stream: Literal[True],
        progress: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> AsyncGenerator[GenerateResult, None]: ...
    @overload
    async def async_generate(
        self,
        prompt: str | list[str] | None = None,
        sampling_params: ManyParams | None = None,
        input_ids: list[int] | list[list[int]] | None = None,
        *,
        messages: list[Any] | None = None,
        stream: bool = False,
        progress: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> Any: ...

    async def async_generate(
        self,
        prompt: str | list[str] | None = None,
        sampling_params: ManyParams | None = None,
        input_ids: list[int] | list[list[int]] | None = None,
        *,
        messages: list[Any] | None = None,
        stream: bool = False,
        progress: bool = False,
        **options: Any,
    ) -> Any:
        """Generate like `generate`, from any running loop; with `stream`, return an async iterator.

        Cancelling the call, or closing the iterator, aborts the request on every engine.
        """
        obj = self._input(prompt, sampling_params, input_ids, messages, stream, options)
        results = self._results(obj, progress)
        if stream:
            relay = self._relay(obj)
            return relay.adrain(partial(self._begin, relay, results))
        return await asyncio.wrap_future(self._thread.submit(_only(results)))

    # ---

    def _input(
        self,
        prompt: object,
        sampling_params: object,
        input_ids: object,
        messages: list[Any] | None,
        stream: bool,
        options: dict[str, Any],
    ) -> Any:
        self._thread.check_usable()
        for name in _OURS:
            if options.pop(name, None) is not None:
                raise InvalidRequest(f"{name}: wanted unset, it is decided for every request")
        if messages is not None:
            if prompt is not None or input_ids is not None:
                raise InvalidRequest("messages: wanted without prompt and input_ids")
            input_ids = self._chat_ids(messages)
        try:
            return self._input_class(
                text=prompt,
                sampling_params=sampling_params,
                input_ids=input_ids,
                stream=stream,
                **options,
            )
        except TypeError as error:
            raise InvalidRequest(f"{error} (as sglang.Engine.generate has it)") from error

    def _chat_ids(self, messages: list[Any]) -> Any:
        if not messages:
            raise InvalidRequest("messages=[]: wanted at least one message")
        rendered = self._api.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True
        )
        return rendered["input_ids"]

    def _results(self, obj: Any, progress: bool) -> AsyncGenerator[Any, None]:
        if progress:
            return _with_bar(self._api, obj)
        return self._api.generate_request(obj)

    def _relay(self, obj: Any) -> Relay:
        one = isinstance(obj.text, str) or isinstance((obj.input_ids or [None])[0], int)
        return Relay(self._thread.check_process, bounded=not one)

    def _begin(self, relay: Relay, results: AsyncGenerator[Any, None]) -> Callable[[], object]:
        self._thread.check_usable()
        return self._thread.submit(relay.feed(results)).cancel


async def _only(results: AsyncGenerator[Any, None]) -> Any:
    async with aclosing(results):
        return await anext(results)


async def _with_bar(api: GenerateApi, obj: Any) -> AsyncGenerator[Any, None]:
    bar = ProgressBar()
    try:
        async with aclosing(api.generate_request(obj, count=bar.count)) as results:
            async for result in results:
                yield result
    finally:
        bar.close()


class ProgressBar:
    """Counts answered prompts on standard error, or below a notebook's cell."""

    def __init__(self) -> None:
        self._bar: Any = None

    def count(self, answered: int, total: int) -> None:
        if self._bar is None:
            self._bar = tqdm(total=total, desc="pd_eagle", unit="prompt")
        self._bar.update(answered - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
