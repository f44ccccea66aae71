"""`PDEngine`: the drop-in for `sglang.Engine` in scripts and notebooks.

The engines run in child processes, the front in a thread of the caller's process, so that it works
with and without a running event loop. It knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Self

from pd_eagle import deployment as deployments
from pd_eagle import zygote
from pd_eagle.config import Settings
from pd_eagle.engine import generate_input_class, load_tokenizer
from pd_eagle.errors import InvalidRequest, NotServing
from pd_eagle.front import Front, check_forked_engines
from pd_eagle.generate_api import GenerateApi

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator
    from concurrent.futures import Future
    from types import TracebackType

    from pd_eagle.placement import Plan

#: Of `sglang.Engine.generate`, but decided here for every request.
_OURS = ("bootstrap_host", "bootstrap_port", "bootstrap_room", "routed_dp_rank", "rid_prefix")
_END = object()


class PDEngine:
    """SGLang engines for prefill and decode behind `sglang.Engine`'s own generate calls.

    Keyword arguments are the settings' names in lower case (`pd-eagle serve --help` lists them);
    `plan` says what runs where, and why. Use it as a context manager, or call `shutdown()`.
    """

    def __init__(self, **settings: object) -> None:
        """Start every engine; returns when a token has gone through every pair.

        Raises `SettingsError`, `PlanRefused` or `StartFailed`.
        """
        deployment = deployments.decide(Settings.from_kwargs(**settings), os.environ)
        self.plan: Plan = deployment.plan
        front_args = deployment.front_args()
        forked = None
        if check_forked_engines(deployment):
            # This process may have threads: the zygote is a Python of its own.
            forked = zygote.spawn(deployment.environment, front_args, deployment.stack.preload)
        self._loop = _LoopThread()
        self._front: Front = self._loop.call(_make_front(deployment, forked))
        starting = self._loop.submit(self._front.start())
        try:
            tokenizer = load_tokenizer(front_args)
            self._input_class = generate_input_class()
            starting.result()
        except BaseException:
            starting.cancel()
            self.shutdown()  # whoever keeps the error keeps no engine with it
            raise
        self._front.service.decode = tokenizer.decode
        self._api = GenerateApi(self._front.service, tokenizer, incremental=False)

    def health(self) -> dict[str, Any]:
        """Return what `/health` of the server returns."""
        return self._front.health().as_json()

    def generate(
        self,
        prompt: str | list[str] | None = None,
        sampling_params: dict[str, Any] | list[dict[str, Any]] | None = None,
        input_ids: list[int] | list[list[int]] | None = None,
        *,
        messages: list[Any] | None = None,
        stream: bool = False,
        **options: Any,
    ) -> Any:
        """Generate as `sglang.Engine.generate` does: a dictionary, or a list for several prompts.

        `messages` (a chat, or a list of chats) takes the place of `prompt`; `options` are the
        further arguments of `sglang.Engine.generate`. With `stream`, an iterator of results
        so far. Raises `PdEagleError`.
        """
        obj = self._input(prompt, sampling_params, input_ids, messages, stream, options)
        if stream:
            return self._iterate(obj)
        return self._loop.call(_only(self._api.generate_request(obj)))

    async def async_generate(
        self,
        prompt: str | list[str] | None = None,
        sampling_params: dict[str, Any] | list[dict[str, Any]] | None = None,
        input_ids: list[int] | list[list[int]] | None = None,
        *,
        messages: list[Any] | None = None,
        stream: bool = False,
        **options: Any,
    ) -> Any:
        """Generate like `generate`, from any running loop; with `stream`, return an async iterator.

        Cancelling the call, or closing the iterator, aborts the request on every engine.
        """
        obj = self._input(prompt, sampling_params, input_ids, messages, stream, options)
        if stream:
            return self._iterate_async(obj)
        return await asyncio.wrap_future(self._loop.submit(_only(self._api.generate_request(obj))))

    def shutdown(self, drain: float | bool = False) -> bool:
        """Stop every engine; a second call does nothing. False if requests were cut off.

        `drain` is how many seconds running requests may go on; True takes `drain_timeout_s`.
        """
        if self._loop.closed:
            return True
        timeout_s = self._front.deployment.settings.drain_timeout_s if drain is True else drain
        try:
            return bool(self._loop.call(self._front.stop(float(timeout_s))))
        finally:
            self._loop.close()
            if self._front.tracing is not None:
                self._front.tracing.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()

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
        if self._loop.closed:
            raise NotServing("this PDEngine has been shut down")
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

    def _iterate(self, obj: Any) -> Iterator[dict[str, Any]]:
        results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        pumping = self._loop.submit(_pump(self._api.generate_request(obj), results.put))
        try:
            while (item := results.get()) is not _END:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            pumping.cancel()

    async def _iterate_async(self, obj: Any) -> AsyncIterator[dict[str, Any]]:
        results: asyncio.Queue[Any] = asyncio.Queue()
        here = asyncio.get_running_loop()

        def put(item: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the caller's loop was closed: nobody reads
                here.call_soon_threadsafe(results.put_nowait, item)

        pumping = self._loop.submit(_pump(self._api.generate_request(obj), put))
        try:
            while (item := await results.get()) is not _END:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            pumping.cancel()


async def _make_front(deployment: Any, forked: Any) -> Front:
    return Front(deployment, forked)  # its events belong to the loop that runs it


async def _only(results: AsyncGenerator[Any, None]) -> Any:
    async with aclosing(results):
        return await anext(results)


async def _pump(results: AsyncGenerator[Any, None], put: Any) -> None:
    try:
        async with aclosing(results):
            async for result in results:
                put(result)
    except Exception as error:
        put(error)
    else:
        put(_END)


class _LoopThread:
    """An event loop in a daemon thread: it must not keep a script from ending."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="pd_eagle", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        return self._loop.is_closed()

    def submit(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run `coroutine` in the thread's loop and wait; an interrupt of the wait cancels it."""
        future = self.submit(coroutine)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
