"""What engines can take, and whether a request is within it; does not know which engine gets it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from pd_eagle.errors import ContextLengthExceeded, InvalidRequest

if TYPE_CHECKING:
    from pd_eagle.messages import EngineInfo, Request

#: New tokens that a request is taken to need of the KV pool, if it may make more: few do.
_EXPECTED_NEW_TOKENS = 512


def check(request: Request, limits: EngineInfo) -> int:
    """Return the KV tokens that `request` is taken to need.

    Refuses what an engine would refuse, or die of: SGLang 0.5.23 does not check token ids, and
    one outside the vocabulary kills the scheduler; a request that one half alone refuses would
    hang on the other. Raises `InvalidRequest`.
    """
    ids = request.input_ids
    if not ids:
        raise InvalidRequest("the prompt is empty: wanted at least one token")
    if min(ids) < 0 or max(ids) >= limits.vocab_size:
        wrong = next(i for i in ids if not 0 <= i < limits.vocab_size)
        raise InvalidRequest(f"token id {wrong} in the prompt: wanted 0 to {limits.vocab_size - 1}")
    new_tokens = _new_tokens(request)
    _check_length(len(ids), new_tokens, limits)
    return len(ids) + min(new_tokens or _EXPECTED_NEW_TOKENS, _EXPECTED_NEW_TOKENS)


def smallest(infos: list[EngineInfo]) -> EngineInfo:
    """Return what every one of these engines can do."""
    names = ("max_total_tokens", "max_input_tokens", "context_length", "vocab_size")
    least = {name: min(getattr(info, name) for info in infos) for name in names}
    return msgspec.structs.replace(infos[0], **least)


def _new_tokens(request: Request) -> int:
    asked = request.sampling_params.get("max_new_tokens")
    if asked is None:
        return 0
    if type(asked) is not int or asked < 0:
        raise InvalidRequest(f"max_new_tokens={asked!r:.80}: wanted a whole number from 0")
    return asked


def _check_length(prompt_tokens: int, new_tokens: int, limits: EngineInfo) -> None:
    if prompt_tokens >= limits.context_length:
        raise ContextLengthExceeded(
            f"the prompt has {prompt_tokens} tokens: wanted fewer than the context's "
            f"{limits.context_length}"
        )
    if prompt_tokens + new_tokens > limits.context_length:
        raise ContextLengthExceeded(
            f"{prompt_tokens} prompt tokens and {new_tokens} new tokens: wanted at most the "
            f"context's {limits.context_length} together"
        )
    if prompt_tokens + new_tokens > limits.max_total_tokens:
        raise ContextLengthExceeded(
            f"{prompt_tokens} prompt tokens and {new_tokens} new tokens do not fit the engine's "
            f"KV pool of {limits.max_total_tokens} tokens"
        )
