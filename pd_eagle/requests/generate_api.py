"""SGLang's own generate interface over the service: `GenerateReqInput` in, result dictionaries out.

What `sglang.Engine.async_generate` and SGLang's OpenAI classes expect of a tokenizer manager, with
the engines elsewhere. It knows nothing of HTTP, and nothing of where a request runs.
"""

from __future__ import annotations

import asyncio
from array import array
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from pd_eagle.errors import InvalidRequest
from pd_eagle.messages import Options, Request, new_rid
from pd_eagle.requests import gate
from pd_eagle.requests.batches import Batch
from pd_eagle.requests.bounds import shown
from pd_eagle.requests.result_dicts import Answer
from pd_eagle.requests.text_length import refuse_too_long

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence

    from pd_eagle.messages import Delta, EngineInfo
    from pd_eagle.requests.batches import Count
    from pd_eagle.requests.service import Service

#: Prompts longer than this are tokenized off the event loop, in characters.
_INLINE_TOKENIZE_CHARS = 4096

#: Prompts of a call that are begun in one iteration of the event loop.
_PER_ITERATION = 8


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is needed to read a prompt."""

    def __call__(self, text: str) -> Any: ...


#: What SGLang's reading of a request raises where the request is not what it takes it for.
MISREAD = (ValueError, TypeError, AttributeError, LookupError, AssertionError, RecursionError)


@dataclass(frozen=True, slots=True)
class _Part:
    """One prompt of a call; those of one `group` wait in one queue.

    One that is `patient` waits for admission without limit.
    """

    index: int
    blank: Request  # all but its tokens
    shows_prompt: bool
    input_ids: Sequence[int]
    public_id: str
    group: object
    patient: bool

    def request(self) -> Request:
        return msgspec.structs.replace(self.blank, input_ids=list(self.input_ids))

    def answer(self, index: int | None, *, incremental: bool) -> Answer:
        return Answer(
            public_id=self.public_id,
            index=index,
            incremental=incremental,
            prompt_ids=self.input_ids if self.shows_prompt else None,
        )


class GenerateApi:
    """`generate_request` as SGLang's tokenizer manager has it."""

    tool_call_parser: str | None = None

    def __init__(
        self,
        service: Service,
        tokenizer: Tokenizer,
        *,
        incremental: bool,
        patient: bool | None = None,
        one_id: bool = False,
    ) -> None:
        """With `one_id` all answers of one call have the same id, as OpenAI has it.

        `patient` is for calls of this process itself, None for those of HTTP clients.

        The prompts of one such call are begun as others of it end, and wait for each other without
        limit; if `patient`, for those of other calls too.
        """
        self.service = service
        self.tokenizer: Any = tokenizer
        self._incremental = incremental
        self._patient = patient
        self._one_id = one_id
        #: Requests in the service: the caller's name, and ours.
        self._open: set[tuple[str, str]] = set()

    def abort(self, rid: str | None) -> None:
        """End the requests that were given `rid`, or all; their finish reason is `abort`.

        Of a batch, those that have not begun go on.
        """
        for public_id, ours in self._open:
            if rid is None or rid == public_id:
                self.service.aborts.abort(ours)

    def detokenize(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids)
        return text

    async def generate_request(
        self, obj: Any, raw_request: object = None, *, count: Count | None = None
    ) -> AsyncGenerator[Any, None]:
        """Yield results for `obj`, a `GenerateReqInput`: a dictionary, or a list for a batch.

        With `obj.stream` one dictionary per step, distinguished by `index`. Raises `InvalidRequest`
        for what cannot be served, else the request's own `PdEagleError`; closing aborts.
        """
        total = self._normalize(obj)
        parts = self._parts(obj, _timeout_s(raw_request))
        if self._patient is None or total == 1:  # a client's call is refused as a whole
            parts = _each([part async for part in parts])
        width = total if self._patient is None else self.service.max_inflight
        batch = Batch(total, width, count)
        if obj.stream and total == 1:
            # Here, not in a generator of its own: every token would pass through it.
            part = await anext(parts)
            answer = self._answer(part, None)
            async with self._deltas(part) as deltas:
                async for delta in deltas:
                    yield answer.add(delta)
        elif obj.stream:
            async with aclosing(batch.stream(parts, self._steps)) as results:
                async for result in results:
                    yield result
        else:
            whole = await batch.answers(parts, self._whole)
            yield whole[0] if obj.is_single and total == 1 else whole

    # --- what was asked for

    def _normalize(self, obj: Any) -> int:
        """Let SGLang read `obj`; return how many answers it asks for."""
        _check_sampling(obj, self.service.limits)
        _check_counts(obj)
        try:
            obj.normalize_batch_and_arguments()
        except MISREAD as error:
            raise InvalidRequest(sglang_message(error)) from error
        total: int = (1 if obj.is_single else obj.batch_size) * obj.parallel_sample_num
        if self._patient is None and total > self.service.places:
            raise InvalidRequest(
                f"{total} answers in one request: wanted at most {self.service.places}, as many as "
                "may run and wait here (PD_MAX_INFLIGHT, PD_MAX_QUEUE)"
            )
        return total

    async def _parts(self, obj: Any, timeout_s: float | None) -> AsyncGenerator[_Part, None]:
        """Yield the prompts of `obj`, which has been normalized, as they have been read."""
        own, samples = self._patient is not None, obj.parallel_sample_num
        index, common_id = 0, ""
        for number in range(1 if obj.is_single else obj.batch_size):
            prompt = obj if obj.is_single else obj[number]
            vars(obj).pop("_sub_obj_cache", None)  # of SGLang 0.5.23: kilobytes a prompt
            gate.check_options(prompt)
            input_ids: Sequence[int] = await self._input_ids(prompt)
            if obj.batch_size * samples > 1:
                input_ids = self._check_early(number, prompt, input_ids)
                await asyncio.sleep(0)  # yield to other tasks
            for _ in range(samples):
                # A user's rid may be anything; ours never is the prefix of another.
                blank = _request(prompt, [], timeout_s)
                public_id = prompt.rid if samples == 1 else blank.rid
                if self._one_id:
                    public_id = common_id = common_id or public_id
                # Those of one own call wait for each other as long as it takes.
                patient = own and (bool(self._patient) or index > 0)
                shows = bool(prompt.return_prompt_token_ids)
                yield _Part(index, blank, shows, input_ids, public_id, obj, patient)
                index += 1

    def _check_early(self, number: int, prompt: Any, input_ids: Sequence[int]) -> Sequence[int]:
        """Return `input_ids` in a compact form; raises for what would be refused later."""
        try:
            self.service.check(_request(prompt, list(input_ids), None))
        except InvalidRequest as error:
            raise type(error)(f"prompt {number}: {error}") from error
        if self._patient is None or prompt.input_ids is not None:
            return input_ids
        return array("i", input_ids)

    async def _input_ids(self, prompt: Any) -> list[int]:
        if prompt.input_ids is not None:
            return _checked_ids(prompt.input_ids)
        if not isinstance(prompt.text, str):
            raise InvalidRequest(f"prompt {prompt.text!r:.80}: wanted text or a list of token ids")
        if len(prompt.text) < _INLINE_TOKENIZE_CHARS:
            return self._encode(prompt.text)
        return await asyncio.to_thread(self._encode, prompt.text)

    def _encode(self, text: str) -> list[int]:
        refuse_too_long(self.tokenizer, text, self.service.limits.context_length)
        input_ids: list[int] = self.tokenizer(text)["input_ids"]
        return input_ids

    # --- what comes back

    @asynccontextmanager
    async def _deltas(self, part: _Part) -> AsyncGenerator[AsyncGenerator[Delta, None], None]:
        request = part.request()
        known = (part.public_id, request.rid)
        self._open.add(known)
        try:
            stream = self.service.stream(request, part.group, patient=part.patient)
            async with aclosing(stream) as deltas:
                yield deltas
        finally:
            self._open.discard(known)

    def _answer(self, part: _Part, index: int | None) -> Answer:
        return part.answer(index, incremental=self._incremental)

    async def _whole(self, part: _Part) -> dict[str, Any]:
        answer = part.answer(None, incremental=False)
        async with self._deltas(part) as deltas:
            async for delta in deltas:
                answer.take(delta)
        return answer.whole()

    async def _steps(self, part: _Part) -> AsyncGenerator[dict[str, Any], None]:
        answer = self._answer(part, part.index)
        async with self._deltas(part) as deltas:
            async for delta in deltas:
                yield answer.add(delta)


def _check_counts(obj: Any) -> None:
    params = obj.sampling_params
    prompts = obj.text if obj.text is not None else obj.input_ids
    if isinstance(params, list) and isinstance(prompts, list) and len(params) != len(prompts):
        raise InvalidRequest(
            f"sampling_params: a list of {len(params)} for {len(prompts)} prompts: wanted one for "
            "each, or one for all"
        )


async def _each(parts: list[_Part]) -> AsyncGenerator[_Part, None]:
    for number, part in enumerate(parts, 1):
        yield part
        if number % _PER_ITERATION == 0:
            await asyncio.sleep(0)


def _check_sampling(obj: Any, limits: EngineInfo) -> None:
    """Check the sampling parameters of the whole call, before SGLang normalizes them."""
    given = obj.sampling_params if isinstance(obj.sampling_params, list) else [obj.sampling_params]
    if not given:
        raise InvalidRequest("sampling_params=[]: wanted a dictionary, or one for each prompt")
    for params in given:
        if not isinstance(params, dict | None):
            raise InvalidRequest(f"sampling_params={shown(params)}: wanted a dictionary")
        gate.check_sampling(params or {}, limits)


def _checked_ids(input_ids: Any) -> list[int]:
    if not isinstance(input_ids, list) or not all(type(i) is int for i in input_ids):
        raise InvalidRequest(f"input_ids {input_ids!r:.80}: wanted a list of whole numbers")
    return input_ids


def sglang_message(error: Exception) -> str:
    """Return the message of an error that SGLang raised for a request it could not read."""
    words = str(error)[:1000]
    return words if isinstance(error, ValueError) and words else f"{type(error).__name__}: {words}"


def _timeout_s(raw_request: Any) -> float | None:
    """Return the deadline that came with the HTTP request, which SGLang's classes do not carry."""
    return getattr(getattr(raw_request, "state", None), "timeout_s", None)


def _request(prompt: Any, input_ids: list[int], timeout_s: float | None) -> Request:
    params = {k: v for k, v in (prompt.sampling_params or {}).items() if k != "n"}
    return Request(new_rid(), input_ids, params, _options(prompt), timeout_s)


def _options(prompt: Any) -> Options:
    """Take what `Options` carries from a normalized single `GenerateReqInput`."""
    given: Iterator[tuple[str, Any]] = (
        (name, getattr(prompt, name)) for name in Options.__struct_fields__
    )
    return Options(**{name: value for name, value in given if value is not None})
