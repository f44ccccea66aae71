"""One request over one pair, from submit to its one terminal event.

Both halves get the same ids, rid and room; decode streams the whole answer, but for its first token
where prefill tells it sooner. It does not choose the pair and does not try again: it says what
happened.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import msgspec

from pd_eagle.errors import DeadlineExceeded, EngineError, from_code
from pd_eagle.messages import Delta, Event, Failed, Submit
from pd_eagle.requests.resume import INCOMPLETE

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from pd_eagle.messages import Request
    from pd_eagle.requests.router import Pair

#: What only the prefill engine knows of the prompt (as in SGLang 0.5.23's own PD router).
_PROMPT_LOGPROBS = ("input_token_logprobs", "input_top_logprobs", "input_token_ids_logprobs")


class Mailbox:
    """Events from two writers to one reader. Bounded by the tokens of one request."""

    # A future of its own, not an `asyncio.Event`: this is done for every token.
    def __init__(self) -> None:
        self._events: list[tuple[str, Event]] = []
        self._loop = asyncio.get_running_loop()
        self._reader: asyncio.Future[None] | None = None

    def put(self, half: str, event: Event) -> None:
        self._events.append((half, event))
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def take(self) -> list[tuple[str, Event]]:
        """Return all events that have come, in order; waits for the first."""
        if not self._events:
            self._reader = self._loop.create_future()
            await self._reader
        taken, self._events = self._events, []
        return taken


def _unheard(*_: object) -> None:
    """Nobody is told."""


async def run(
    pair: Pair,
    request: Request,
    deadline: float,
    on_phase: Callable[[str, float], None] = _unheard,
    on_abort: Callable[[str], None] = _unheard,
    *,
    first_early: bool = False,
) -> AsyncGenerator[Delta, None]:
    """Run one request over one pair; yield decode's deltas, raise what either half fails with.

    `deadline` is a time of the running loop. Both halves are aborted on the way out, whatever that
    way is: idempotent for one that has ended. A failed prefill ends the handoff at once; decode
    would wait for its KV for minutes. `on_phase` gets the seconds of "prefill", until the KV has
    been sent, of "first_delta" after it, and of "kv_handoff", from the end of prefill's last step
    to decode's first delta; `on_abort` why an attempt did not come to its end.
    With `first_early` the first token is given out when prefill tells it, if it has a whole text.
    """
    phases = _Phases(on_phase, in_pd=pair.prefill is not None)
    cause = "closed"
    mailbox = Mailbox()
    # A timer that writes into the mailbox, since no timeout may enclose a yield.
    late = Failed(request.rid, DeadlineExceeded.code, "the request's time is up")
    timer = asyncio.get_running_loop().call_at(deadline, mailbox.put, "deadline", late)
    bootstrap = pair.open_room()
    submit = Submit(request, bootstrap)
    prompt = _PromptLogprobs(wanted=pair.prefill is not None and request.options.return_logprob)
    first = _FirstToken(early=first_early)
    try:
        if pair.prefill is not None:
            pair.prefill.submit(submit, lambda event: mailbox.put("prefill", event))
        pair.decode.submit(submit, lambda event: mailbox.put("decode", event))
        while True:
            for half, event in await mailbox.take():
                if not phases.over:
                    phases.note(half, event)
                if isinstance(event, Failed):
                    if half == "prefill" and prompt.begun:
                        continue  # decode has the KV: it goes on without prefill
                    cause = event.code
                    raise from_code(event.code, event.message)
                if half == "prefill":
                    prompt.learn(event)
                    deltas = prompt.release() if prompt.known else []
                    deltas += first.of_prefill(event)
                else:
                    deltas = first.of_decode(prompt.hold(event))
                for delta in deltas:
                    if delta.finished:
                        cause = ""
                    yield delta
                    if delta.finished:
                        return
    finally:
        timer.cancel()
        if cause:
            on_abort(cause)
        if pair.prefill is not None:
            pair.prefill.abort(request.rid)
        pair.decode.abort(request.rid)


class _Phases:
    """Times of one handoff until decode's first delta."""

    def __init__(self, on_phase: Callable[[str, float], None], *, in_pd: bool) -> None:
        self._on_phase = on_phase
        self._last = time.monotonic()
        self._prefilling = in_pd
        self._prefilled_at: float | None = None  # wall clock of this host, by the engine
        self.over = False

    def note(self, half: str, event: Event) -> None:
        if not isinstance(event, Delta):
            return
        if half == "decode":
            # Its socket may be read before prefill's: then prefill was over by now.
            self._end_prefill()
            self.over = True
            self._end("first_delta")
            if self._prefilled_at is not None:
                self._on_phase("kv_handoff", max(0.0, time.time() - self._prefilled_at))
        elif event.finished:
            self._prefilled_at = event.meta.get("prefill_finished_time")
            self._end_prefill()

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

    def __init__(self, *, wanted: bool) -> None:
        self.known = not wanted
        self.begun = False
        self._entries: dict[str, Any] = {}
        self._held: list[Delta] = []

    def learn(self, prefilled: Delta) -> None:
        if not self.known and prefilled.finished:
            self.known = True
            self._entries = {
                key: prefilled.meta[key] for key in _PROMPT_LOGPROBS if key in prefilled.meta
            }

    def hold(self, delta: Delta) -> list[Delta]:
        if self.known and self.begun and not self._entries:
            return [delta]  # the usual: nothing was held, nothing is added
        self._held.append(delta)
        return self.release() if self.known else []

    def release(self) -> list[Delta]:
        self.begun = self.begun or bool(self._held)
        held, self._held = self._held, []
        if not self._entries:
            return held
        return [msgspec.structs.replace(delta, meta=delta.meta | self._entries) for delta in held]


#: What decode's first delta says of a request too; the rest of prefill's is about prefill.
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
    """Gives out the answer's first token when prefill tells it, and takes it from what decode says.

    Prefill samples it and decode repeats it, but only after the step that it is in (SGLang 0.5.23).
    """

    def __init__(self, *, early: bool) -> None:
        self._early = early
        self._given: Delta | None = None
        self._held_meta: dict[str, Any] = {}

    def of_prefill(self, delta: Delta) -> list[Delta]:
        """Return what to give out of prefill's one delta, which ends its half."""
        clean = len(delta.output_ids) == 1 and delta.text and not delta.text.endswith(INCOMPLETE)
        if not (self._early and clean):
            return []
        meta = {name: delta.meta[name] for name in _FIRST_META if name in delta.meta}
        meta["finish_reason"] = None
        self._given = Delta(delta.rid, delta.text, delta.output_ids, meta, finished=False)
        return [self._given]

    def of_decode(self, deltas: list[Delta]) -> list[Delta]:
        """Return decode's `deltas` without what was given out before them."""
        self._early = False
        if self._given is None and not self._held_meta:
            return deltas  # the usual
        return [rest for delta in deltas if (rest := self._rest(delta)) is not None]

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
