"""One request over one pair, from submit to its one terminal event.

Both halves get the same ids, rid and room; decode streams the whole answer, except its first token
where prefill reports it sooner. It does not choose the pair and does not retry: it reports what
happened.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from pd_eagle.errors import DeadlineExceeded, EngineError, from_code
from pd_eagle.messages import Delta, Event, Failed, Submit
from pd_eagle.requests.aborts import FINISH_REASON
from pd_eagle.requests.resume import INCOMPLETE

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from pd_eagle.messages import Request
    from pd_eagle.requests.router import Pair

#: What only the prefill engine knows of the prompt (as in SGLang 0.5.23's own PD router).
_PROMPT_LOGPROBS = ("input_token_logprobs", "input_top_logprobs", "input_token_ids_logprobs")
#: Decode has None for the first token, which prefill sampled (SGLang 0.5.23).
_GIVEN_IDS = "output_token_ids_logprobs"


Half = Literal["prefill", "decode", "deadline", "cut"]


class Mailbox:
    """Events from two writers to one reader. Bounded by the tokens of one request."""

    # A future of its own, not an `asyncio.Event`: this is done for every token.
    def __init__(self) -> None:
        self._events: list[tuple[Half, Event]] = []
        self._loop = asyncio.get_running_loop()
        self._reader: asyncio.Future[None] | None = None

    def put(self, half: Half, event: Event) -> None:
        self._events.append((half, event))
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def take(self) -> list[tuple[Half, Event]]:
        """Return all events that have come, in order; waits for the first."""
        if not self._events:
            self._reader = self._loop.create_future()
            await self._reader
        taken, self._events = self._events, []
        return taken


def _ignore(*_: object) -> None: ...


async def run(
    pair: Pair,
    request: Request,
    deadline: float,
    on_phase: Callable[[str, float], None] = _ignore,
    on_abort: Callable[[str], None] = _ignore,
    *,
    first_early: bool = False,
    cut: asyncio.Future[None] | None = None,
) -> AsyncGenerator[Delta, None]:
    """Run one request over one pair; yield decode's deltas, raise what either half fails with.

    `deadline` is a time of the running loop. Both halves are aborted on the way out, whatever that
    way is: idempotent for one that has ended. A failed prefill ends the handoff at once; decode
    would wait for its KV for minutes. `on_phase` gets the seconds of "prefill", until the KV has
    been sent, of "first_delta" after it, and of "kv_handoff", from the end of prefill's last step
    to decode's first delta; `on_abort` why an attempt did not come to its end.
    With `first_early` the first token is yielded when prefill reports it, if it has a whole text.
    Once `cut` is done, the last delta says that the request was aborted.
    """
    halves = _Halves(pair, request, deadline, cut)
    answer = _Answer(pair, request, on_phase, first_early=first_early)
    try:
        halves.submit()
        while True:
            for half, event in await halves.mailbox.take():
                for delta in answer.take(half, event):
                    if delta.finished:
                        answer.cut_by = ""
                    yield delta
                    if delta.finished:
                        return
    finally:
        halves.abort()
        if answer.cut_by:
            on_abort(answer.cut_by)


class _Halves:
    """One request on both workers of its pair, and what they say of it."""

    def __init__(
        self,
        pair: Pair,
        request: Request,
        deadline: float,
        cut: asyncio.Future[None] | None,
    ) -> None:
        self.mailbox = Mailbox()
        self._cut = cut
        self._pair = pair
        self._request = request
        # A timer that writes into the mailbox, since no timeout may enclose a yield.
        late = Failed(request.rid, DeadlineExceeded.code, "the request's time is up")
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(deadline, self.mailbox.put, "deadline", late)
        if cut is not None:
            cut.add_done_callback(self._end_early)

    def _end_early(self, _: object) -> None:
        meta = {"finish_reason": FINISH_REASON}
        self.mailbox.put("cut", Delta(self._request.rid, "", [], meta, finished=True))

    def submit(self) -> None:
        """Send the request to both workers, in one room."""
        submit, put = Submit(self._request, self._pair.open_room()), self.mailbox.put
        if self._pair.prefill is not None:
            self._pair.prefill.submit(submit, partial(put, "prefill"))
        self._pair.decode.submit(submit, partial(put, "decode"))

    def abort(self) -> None:
        self._timer.cancel()
        if self._cut is not None:
            self._cut.remove_done_callback(self._end_early)
        for worker in self._pair.workers:
            worker.abort(self._request.rid)


class _Answer:
    """The answer's deltas, put together from the events of both halves.

    `cut_by` says why it did not come to its end: the code of an error, or "closed".
    """

    def __init__(
        self,
        pair: Pair,
        request: Request,
        on_phase: Callable[[str, float], None],
        *,
        first_early: bool,
    ) -> None:
        in_pd = pair.prefill is not None
        self.cut_by = "closed"
        self._phases = _Phases(on_phase, in_pd=in_pd)
        self._prompt = _PromptLogprobs(expected=in_pd and request.options.return_logprob)
        self._first = _FirstToken(early=first_early)
        self._plain = False  # decode's deltas are the answer's from here on

    def take(self, half: Half, event: Event) -> list[Delta]:
        """Return what `event` adds to the answer; raises what a half fails with."""
        if isinstance(event, Failed):
            self._fail(half, event)
            return []
        if half == "prefill":
            return self._of_prefill(event)
        if half == "cut":
            return [event]
        return [event] if self._plain else self._of_decode(event)

    def _fail(self, half: Half, event: Failed) -> None:
        if half == "prefill" and self._prompt.begun:
            return  # decode has the KV: it goes on without prefill
        self.cut_by = event.code
        raise from_code(event.code, event.message)

    def _of_prefill(self, delta: Delta) -> list[Delta]:
        if not self._phases.over:
            self._phases.note_prefill(delta)
        self._prompt.learn(delta)
        return self._prompt.release() + self._first.of_prefill(delta)

    def _of_decode(self, delta: Delta) -> list[Delta]:
        if not self._phases.over:
            self._phases.note_decode()
        deltas = self._first.of_decode(self._prompt.hold(delta))
        self._plain = self._prompt.passed and self._first.passed
        return deltas


class _Phases:
    """Times of one handoff until decode's first delta."""

    def __init__(self, on_phase: Callable[[str, float], None], *, in_pd: bool) -> None:
        self._on_phase = on_phase
        self._last = time.monotonic()
        self._prefilling = in_pd
        self._prefilled_at: float | None = None  # wall clock of this host, by the engine
        self.over = False

    def note_prefill(self, delta: Delta) -> None:
        if delta.finished:
            self._prefilled_at = delta.meta.get("prefill_finished_time")
            self._end_prefill()

    def note_decode(self) -> None:
        # Its socket may be read before prefill's: then prefill was over by now.
        self._end_prefill()
        self.over = True
        self._end("first_delta")
        if self._prefilled_at is not None:
            self._on_phase("kv_handoff", max(0.0, time.time() - self._prefilled_at))

    def _end_prefill(self) -> None:
        if self._prefilling:
            self._prefilling = False
            self._end("prefill")

    def _end(self, phase: str) -> None:
        now = time.monotonic()
        self._on_phase(phase, now - self._last)
        self._last = now


class _PromptLogprobs:
    """Holds decode's deltas back until the prompt's log probabilities have come from prefill."""

    def __init__(self, *, expected: bool) -> None:
        self.begun = False  # decode's deltas have been released
        self._known = not expected
        self._entries: dict[str, Any] = {}
        self._first_row: Any = None
        self._held: list[Delta] = []

    def learn(self, prefilled: Delta) -> None:
        if not self._known and prefilled.finished:
            self._known = True
            self._entries = {
                key: prefilled.meta[key] for key in _PROMPT_LOGPROBS if key in prefilled.meta
            }
            self._first_row = next(iter(prefilled.meta.get(_GIVEN_IDS) or ()), None)

    def hold(self, delta: Delta) -> list[Delta]:
        self._held.append(delta)
        return self.release()

    @property
    def passed(self) -> bool:
        """Whether nothing is held, and nothing will be added to what comes."""
        return self.begun and not self._entries and self._first_row is None

    def release(self) -> list[Delta]:
        """Return what was held, once the log probabilities are known."""
        if not self._known:
            return []
        self.begun = self.begun or bool(self._held)
        held, self._held = self._held, []
        if not self._entries and self._first_row is None:
            return held
        return [self._completed(delta) for delta in held]

    def _completed(self, delta: Delta) -> Delta:
        added, rows = self._entries, delta.meta.get(_GIVEN_IDS)
        if rows and self._first_row is not None:
            if rows[0] is None:
                added = added | {_GIVEN_IDS: [self._first_row, *rows[1:]]}
            self._first_row = None
        return msgspec.structs.replace(delta, meta=delta.meta | added)


#: What decode's first delta carries too; the rest of prefill's is about prefill.
_FIRST_META = (
    "id",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "cached_tokens_details",
    "reasoning_tokens",
    "weight_version",
    "num_retractions",
    "dp_rank",
)


class _FirstToken:
    """Yields the answer's first token when prefill reports it, and drops it from decode's deltas.

    Prefill samples it and decode repeats it, but only after the step that it is in (SGLang 0.5.23).
    """

    def __init__(self, *, early: bool) -> None:
        self._early = early
        self._given: Delta | None = None
        self._held_meta: dict[str, Any] = {}

    def of_prefill(self, delta: Delta) -> list[Delta]:
        """Return what to yield of prefill's one delta, which ends its half."""
        clean = len(delta.output_ids) == 1 and delta.text and not delta.text.endswith(INCOMPLETE)
        if not (self._early and clean):
            return []
        meta = {name: delta.meta[name] for name in _FIRST_META if name in delta.meta}
        meta["finish_reason"] = None
        self._given = Delta(delta.rid, delta.text, delta.output_ids, meta, finished=False)
        return [self._given]

    def of_decode(self, deltas: list[Delta]) -> list[Delta]:
        """Return decode's `deltas` without what was yielded before them."""
        self._early = False
        if self.passed:
            return deltas
        return [rest for delta in deltas if (rest := self._rest(delta)) is not None]

    @property
    def passed(self) -> bool:
        """Whether nothing is to be dropped from decode's deltas, or added to them."""
        return self._given is None and not self._held_meta

    def _rest(self, delta: Delta) -> Delta | None:
        given, self._given = self._given, None
        text, ids = delta.text, delta.output_ids
        if given is not None:
            if ids[:1] != given.output_ids or not text.startswith(given.text):
                raise EngineError(
                    f"prefill's first token was {given.output_ids} {given.text!r}, decode's is "
                    f"{ids[:1]} {text!r:.80}"
                )
            text, ids = text.removeprefix(given.text), ids[1:]
        meta, self._held_meta = self._held_meta | delta.meta, {}
        if not (ids or text or delta.finished):
            self._held_meta = meta  # it comes with the next
            return None
        return Delta(delta.rid, text, ids, meta, delta.finished)
