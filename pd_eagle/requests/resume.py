"""How far a request has come, so that another pair can go on where one failed.

It turns the deltas of every attempt into those of one undisturbed answer. It knows nothing of pairs
or workers.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import msgspec

from pd_eagle.messages import Delta

if TYPE_CHECKING:
    from collections.abc import Callable

    from pd_eagle.messages import Request

#: Sampling parameters whose state is the answer so far, which a new prompt would not restore.
_STATEFUL = ("json_schema", "regex", "ebnf", "structural_tag", "stop_regex", "custom_params")
#: Penalties count what was generated; of a resumed answer the first part would be prompt.
_PENALTIES = {"frequency_penalty": 0, "presence_penalty": 0, "repetition_penalty": 1}
#: How many last tokens show whether a character is still incomplete (at most 4 bytes in UTF-8).
_CONTEXT_TOKENS = 8
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # ends a text whose last character is not whole


def why_not_resume(request: Request) -> str | None:
    """Return why `request` cannot go on elsewhere in mid-answer, None if it can."""
    params = request.sampling_params
    for name in _STATEFUL:
        if params.get(name):
            return f"{name} is set: its state is lost with the worker"
    for name, neutral in _PENALTIES.items():
        if params.get(name) not in (None, neutral):
            return f"{name} is set: it counts the tokens that were lost with the worker"
    if request.options.custom_logit_processor:
        return "custom_logit_processor is set: its state is lost with the worker"
    return None


def first_may_come_early(request: Request) -> bool:
    """Return whether prefill's token may be sent to the client before decode has repeated it.

    Not where its text may be trimmed, because the answer ends with it; and not where a decode
    engine that dies right then would cost the answer: one that has not begun can be retried.
    """
    params = request.sampling_params
    # Else the token that ends an answer has no text.
    cut = any(params.get(name) for name in ("stop", "stop_token_ids"))
    cut = cut or params.get("skip_special_tokens") is False or params.get("max_new_tokens") == 0
    return not (cut or request.options.return_logprob or why_not_resume(request))


class Progress:
    """One request over all its attempts.

    `detokenize` makes text of token ids; without it every delta is taken to end a character.
    """

    def __init__(self, request: Request, detokenize: Callable[[list[int]], str] | None) -> None:
        self._request = request
        self._detokenize = detokenize
        self._ids: list[int] = []
        self._texts: list[str] = []
        self._characters = 0
        # After each of the last deltas: tokens, characters.
        self._ends = deque([(0, 0)], maxlen=_CONTEXT_TOKENS + 1)
        self._kept = (0, 0)  # of those, what the current attempt was given as its prompt
        self._skip = (0, 0)  # what it will repeat, though the client has it
        self._stops = _stops(request)
        self._reach = max(map(len, self._stops), default=0)  # of a stop beyond where it begins
        self._around_seam = ("", "")  # the text on both sides of where the attempt began
        self._prompt_meta: dict[str, Any] = {}

    @property
    def begun(self) -> bool:
        """Whether the client has anything yet."""
        return len(self._ends) > 1

    def next_attempt(self, rid: str) -> Request:
        """Return the request for another pair, which has to go on from here, under its own rid."""
        self._kept = kept, kept_chars = self._last_clean_end()
        self._skip = (len(self._ids) - kept, self._characters - kept_chars)
        if not kept:
            return msgspec.structs.replace(self._request, rid=rid)
        text = "".join(self._texts)
        before, after = text[max(kept_chars - self._reach, 0) : kept_chars], text[kept_chars:]
        self._around_seam = (before, after[: self._reach])
        params = dict(self._request.sampling_params)
        for name in ("max_new_tokens", "min_new_tokens"):
            if params.get(name) is not None:
                params[name] = max(params[name] - kept, 0)
        return msgspec.structs.replace(
            self._request,
            rid=rid,
            input_ids=self._request.input_ids + self._ids[:kept],
            sampling_params=params,
            # The prompt's own log probabilities came with the first attempt.
            options=msgspec.structs.replace(self._request.options, logprob_start_len=-1),
        )

    def _last_clean_end(self) -> tuple[int, int]:
        """Return where the last delta ended that did not end within a character.

        The text of an incomplete character is held back by SGLang's detokenizer, and would be lost
        if its first tokens became prompt.
        """
        if self._detokenize is None:
            return self._ends[-1]
        for tokens, characters in reversed(self._ends):
            tail = self._ids[max(tokens - _CONTEXT_TOKENS, 0) : tokens]
            if not tail or not self._detokenize(tail).endswith(INCOMPLETE):
                return tokens, characters
        return (0, 0)

    def add(self, delta: Delta) -> Delta | None:
        """Return `delta` as a part of the whole answer, None if the client has all of it."""
        seen = delta
        if self._kept[0] or any(self._skip):
            seen = self._stopped_at_seam(self._without_repetition(delta))
        meta = self._whole_meta(seen.meta)
        self._ids += seen.output_ids
        self._texts.append(seen.text)
        self._characters += len(seen.text)
        self._ends.append((len(self._ids), self._characters))
        if not (seen.output_ids or seen.text or seen.finished):
            return None
        return seen if meta is seen.meta else msgspec.structs.replace(seen, meta=meta)

    def _without_repetition(self, delta: Delta) -> Delta:
        ids, chars = self._skip
        dropped_ids, dropped_chars = min(ids, len(delta.output_ids)), min(chars, len(delta.text))
        self._skip = (ids - dropped_ids, chars - dropped_chars)
        meta = {
            key: value[dropped_ids:] if _is_increment(key, value) else value
            for key, value in delta.meta.items()
        }
        return Delta(
            delta.rid,
            delta.text[dropped_chars:],
            delta.output_ids[dropped_ids:],
            meta,
            delta.finished,
        )

    def _stopped_at_seam(self, delta: Delta) -> Delta:
        """End the answer if a stop string began before the seam: the new engine cannot see it."""
        before, after = self._around_seam
        if not self._kept[0] or len(after) >= self._reach:  # too far behind for any stop
            return delta
        after = (after + delta.text)[: self._reach]
        self._around_seam = (before, after)
        for stop in self._stops:
            reach = before[max(len(before) - len(stop) + 1, 0) :]
            found = (reach + after[: len(stop) - 1]).find(stop)
            if found < 0:
                continue
            end = self._kept[1] - len(reach) + found + len(stop)
            trimmed = not self._request.sampling_params.get("no_stop_trim")
            last = "" if trimmed else delta.text[: max(end - self._characters, 0)]
            meta = delta.meta | {"finish_reason": {"type": "stop", "matched": stop}}
            return Delta(delta.rid, last, delta.output_ids, meta, True)
        return delta

    def _whole_meta(self, meta: dict[str, Any]) -> dict[str, Any]:
        kept = self._kept[0]
        if not kept:
            if not self._prompt_meta:
                self._prompt_meta = {k: meta[k] for k in ("cached_tokens",) if k in meta}
            return meta
        whole = {k: v for k, v in meta.items() if not k.startswith("input_")}
        whole |= {k: v for k, v in self._prompt_meta.items() if k in whole}
        if "prompt_tokens" in whole:
            whole["prompt_tokens"] = len(self._request.input_ids)
        for name in ("completion_tokens", "output_token_logprobs_length"):
            if name in whole:
                whole[name] += kept
        reason = whole.get("finish_reason")
        if reason and reason["type"] == "length":
            whole["finish_reason"] = reason | {"length": whole["completion_tokens"]}
        return whole


def _stops(request: Request) -> list[str]:
    stop = request.sampling_params.get("stop") or []
    return [stop] if isinstance(stop, str) else [text for text in stop if text]


def _is_increment(key: str, value: object) -> bool:
    return isinstance(value, list) and key.startswith("output_")
