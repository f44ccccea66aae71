"""`PDEngine`: the drop-in for `sglang.Engine` in scripts and notebooks.

The engines run in child processes, the front in a thread of the caller's process, so that it works
with and without a running event loop. It knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from concurrent.futures import Future
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from tqdm.auto import tqdm

from pd_eagle.errors import InvalidRequest
from pd_eagle.front_thread import FrontThread
from pd_eagle.plan import deployment as deployments
from pd_eagle.plan.config import Settings
from pd_eagle.relay import Relay
from pd_eagle.requests.generate_api import GenerateApi
from pd_eagle.workers.engine import generate_input_class, load_tokenizer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from types import TracebackType

    from pd_eagle.plan.placement import Plan

#: Of `sglang.Engine.generate`, but decided here for every request.
_OURS = ("bootstrap_host", "bootstrap_port", "bootstrap_room", "routed_dp_rank", "rid_prefix")
#: Settings that bound the queue; unset, `PDEngine`'s own calls wait for each other.
_QUEUE_LIMITS = ("max_queue", "queue_timeout_s")


class PDEngine:
    """SGLang engines for prefill and decode behind `sglang.Engine`'s own generate calls.

    Keyword arguments are the settings' names in lower case (`pd-eagle serve --help` lists them);
    `plan` says what runs where, and why. Use it as a context manager, or call `shutdown()`.
    """

    def __init__(self, **settings: object) -> None:
        """Start every engine; returns when a token has gone through every pair.

        Raises `SettingsError`, `PlanRefused` or `StartFailed`; then nothing is left of it.
        """
        deployment = deployments.decide(Settings.from_kwargs(**settings), os.environ)
        self.plan: Plan = deployment.plan
        api: Future[GenerateApi] = Future()
        self._thread = FrontThread(deployment, api)
        # Dropping the last reference, or running a notebook's cell again, ends the engines.
        weakref.finalize(self, self._thread.abandon).atexit = False  # the thread sees to that
        self._front = self._thread.front
        starting = self._thread.submit(self._front.start())
        try:
            tokenizer = load_tokenizer(deployment.front_args())
            self._input_class = generate_input_class()
            starting.result()
        except BaseException:
            starting.cancel()
            self.shutdown()  # else the traceback of the error would keep the engines alive
            raise
        waits = settings.keys().isdisjoint(_QUEUE_LIMITS)
        self._api = GenerateApi(self._front.service, tokenizer, incremental=False, patient=waits)
        api.set_result(self._api)

    def health(self) -> dict[str, Any]:
        """Return what `/health` of the server returns."""
        self._thread.check_process()
        return self._front.health().as_json()

    def generate(
        self,
        prompt: str | list[str] | None = None,
        sampling_params: dict[str, Any] | list[dict[str, Any]] | None = None,
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
        its prompts are begun as others end. Raises `PdEagleError`.
        """
        obj = self._input(prompt, sampling_params, input_ids, messages, stream, options)
        results = self._results(obj, progress)
        if stream:
            relay = self._relay(obj)
            return relay.drain(partial(self._begin, relay, results))
        return self._thread.call(_only(results))

    async def async_generate(
        self,
        prompt: str | list[str] | None = None,
        sampling_params: dict[str, Any] | list[dict[str, Any]] | None = None,
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

    def shutdown(self, drain: float | bool = False) -> bool:
        """Stop every engine; a second call does nothing. False if requests were cut off.

        `drain` is how many seconds running requests may go on; True takes `drain_timeout_s`.
        """
        self._thread.check_process()
        if self._thread.ended:
            self._thread.stop()  # another thread's call may still be at it
            return True
        return self._thread.stop(self._thread.drain_timeout_s if drain is True else float(drain))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._thread.ours:  # a forked child that leaves the block ends nothing
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
