"""The one table of every field that a client can set and an engine uses, with its bound.

HTTP and `PDEngine` go through it before anything is dispatched: SGLang (0.5.23) leaves much to its
scheduler, which dies of what it does not expect. It does not know which engine gets a request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from pd_eagle.errors import ContextLengthExceeded, InvalidRequest
from pd_eagle.requests import sampling_names
from pd_eagle.requests.bounds import (
    INT32_MAX,
    INT64_MAX,
    Bound,
    Each,
    Flag,
    Json,
    Number,
    Text,
    TokenBias,
    TokenIds,
    Unset,
    Unused,
    Whole,
    context,
    shown,
)
from pd_eagle.requests.grammars import Grammar, Pattern
from pd_eagle.requests.schemas import Schema, StructuralTag
from pd_eagle.requests.stop_patterns import StopPatterns

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pd_eagle.messages import EngineInfo, Request

#: New tokens that a request is expected to take in the KV pool, if it may make more: few do.
_EXPECTED_NEW_TOKENS = 512
#: The most samples of one prompt.
MAX_SAMPLES = 4096
#: SGLang's metadata buffer in PD has room for so many (0.5.23, disaggregation/utils.py).
MAX_TOP_LOGPROBS = 128
MAX_STOPS = 32
MAX_STOP_BYTES = 2**12
MAX_LABEL_BYTES = 2**12

_NEW_TOKENS = Whole(0, INT64_MAX)  # the sum with the prompt is checked, and says more
_SEED = Whole(-INT64_MAX - 1, INT64_MAX)
_INT32 = Whole(-INT32_MAX - 1, INT32_MAX)
_TOP_LOGPROBS = Whole(0, lambda limits: min(MAX_TOP_LOGPROBS, limits.vocab_size))
_LABEL = Text(MAX_LABEL_BYTES)
_LABELS = Each(_LABEL, MAX_SAMPLES)
_PENALTY = Number(-2, 2)
_CUSTOM = Json(max_values=256, max_depth=3, max_bytes=2**14)
_INTERNAL = Unset("SGLang fills it in")
_OF_PD = "it is decided for every request"
_OF_MEDIA = "it is about media, which are refused"


class _Stops:
    """Texts that end an answer; an empty one would end it before it begins."""

    def expected(self, value: Any, limits: EngineInfo) -> str | None:
        texts = [value] if isinstance(value, str) else value
        if isinstance(texts, list) and len(texts) <= MAX_STOPS and all(map(self._is_stop, texts)):
            return None
        return (
            f"a text of 1 to {MAX_STOP_BYTES} bytes of UTF-8, or a list of at most {MAX_STOPS} "
            "such texts"
        )

    def _is_stop(self, text: Any) -> bool:
        return bool(text) and Text(MAX_STOP_BYTES).expected(text, _NO_LIMITS) is None


_NO_LIMITS: Any = None

#: Every field of SGLang's `SamplingParams`.
SAMPLING: dict[str, Bound] = {
    "max_new_tokens": _NEW_TOKENS,
    "min_new_tokens": Whole(0, context),
    "stop": _Stops(),
    "stop_token_ids": TokenIds(1024),
    "stop_regex": StopPatterns(),
    "temperature": Number(0, 1e6),
    "top_p": Number(0, 1, above=True),
    "top_k": Whole(1, INT32_MAX, other=(-1,)),
    "min_p": Number(0, 1),
    "frequency_penalty": _PENALTY,
    "presence_penalty": _PENALTY,
    "repetition_penalty": Number(0, 2, above=True),
    "n": Whole(1, MAX_SAMPLES),
    "beam_width": Unset(),
    "json_schema": Schema(),
    "regex": Pattern(),
    "ebnf": Grammar(),
    "structural_tag": StructuralTag(),
    "ignore_eos": Flag(),
    "skip_special_tokens": Flag(),
    "spaces_between_special_tokens": Flag(),
    "no_stop_trim": Flag(),
    "stream_interval": Whole(1, 2**16),
    "logit_bias": TokenBias(1024, Number(-1e9, 1e9)),
    "sampling_seed": _SEED,
    "custom_params": _CUSTOM,
    "watermark": Unset(),
    "stop_strs": _INTERNAL,
    "stop_regex_strs": _INTERNAL,
    "stop_str_max_len": _INTERNAL,
    "stop_regex_max_len": _INTERNAL,
    "is_normalized": _INTERNAL,
    "ebnf_full_assistant": Flag(),  # SGLang's tool parsers set it
}

_SETTABLE = frozenset(name for name, bound in SAMPLING.items() if bound is not _INTERNAL)

#: Every field of SGLang's `GenerateReqInput`, of one prompt.
OPTIONS: dict[str, Bound] = {
    # the prompt: its tokens are checked with the vocabulary and the context
    "text": Unused("tokenized first"),
    "input_ids": Unused("checked as the prompt"),
    "sampling_params": Unused("a table of its own"),
    "rid": Text(256),
    "stream": Flag(),
    # what `Options` carries to an engine
    "return_logprob": Flag(),
    "logprob_start_len": Whole(-1, context),
    "top_logprobs_num": _TOP_LOGPROBS,
    "token_ids_logprob": TokenIds(MAX_TOP_LOGPROBS),
    "return_text_in_logprobs": Flag(),
    "require_reasoning": Flag(),
    "max_thinking_tokens": Whole(0, context),
    "custom_logit_processor": Text(2**16),
    "priority": _INT32,
    "extra_key": _LABEL,
    "cache_salt": _LABEL,
    "external_trace_header": Json(max_values=64, max_depth=1, max_bytes=2**13),
    # what is refused
    **dict.fromkeys(
        (
            *("input_embeds", "image_data", "video_data", "audio_data", "watermark"),
            *("positional_embed_overrides", "lora_path", "lora_id", "session_id"),
            *("session_params", "return_hidden_states", "return_routed_experts"),
            *("return_indexer_topk", "return_sampling_mask", "return_flat_raw_top_logprobs"),
            *("return_flat_raw_output_top_logprobs", "return_bytes", "return_entropy"),
            *("multi_item_delimiter_indices", "token_indices_to_pool"),
        ),
        Unset(),
    ),
    # what goes no further
    **dict.fromkeys(
        (
            *("bootstrap_host", "bootstrap_port", "bootstrap_room", "bootstrap_pair_key"),
            *("decode_tp_size", "routed_dp_rank", "data_parallel_rank"),
            *("disagg_prefill_dp_rank", "routing_key", "http_worker_ipc", "received_time"),
            "kv_hints",
        ),
        Unused(_OF_PD),
    ),
    **dict.fromkeys(
        ("log_metrics", "no_logs", "custom_labels", "conversation_id", "background"),
        Unused("a label for logs and metrics"),
    ),
    **dict.fromkeys(
        (
            *("mm_hashes", "mm_content_hashes", "use_audio_in_video", "video_config"),
            *("modalities", "max_dynamic_patch", "min_dynamic_patch", "images_config"),
            *("image_max_dynamic_patch", "video_max_dynamic_patch", "mm_processor_kwargs"),
            *("need_wait_for_mm_inputs", "num_items_assigned", "encoder_urls"),
        ),
        Unused(_OF_MEDIA),
    ),
    "routed_experts_start_len": Unused("return_routed_experts is refused"),
    "sampling_logprobs_mode": Unused("return_sampling_mask is refused"),
    "return_flat_raw_top_logprobs_b64": Unused("what it would encode is refused"),
    "return_prompt_token_ids": Unused("the front has them"),
}


_CHECKED_EARLY = ("rid", *(name for name, bound in OPTIONS.items() if isinstance(bound, Unset)))


def check(request: Request, limits: EngineInfo) -> int:
    """Return the KV tokens that `request` is taken to need.

    Refuses what an engine would refuse, or die of: SGLang 0.5.23 does not check token ids, and
    one outside the vocabulary kills the scheduler; a request that one half alone refuses would
    hang on the other. Raises `InvalidRequest`.
    """
    _check_ids(request.input_ids, limits)
    check_sampling(request.sampling_params, limits)
    for name, value in msgspec.structs.asdict(request.options).items():
        if value is not None:
            _check_field(name, value, OPTIONS[name], limits)
    new_tokens: int = request.sampling_params.get("max_new_tokens") or 0
    _check_length(len(request.input_ids), new_tokens, limits)
    _check_together(request)
    return len(request.input_ids) + min(new_tokens or _EXPECTED_NEW_TOKENS, _EXPECTED_NEW_TOKENS)


def check_sampling(params: Mapping[str, Any], limits: EngineInfo) -> None:
    """Raise `InvalidRequest` for a sampling parameter that is unknown or out of its bound."""
    for name, value in params.items():
        if (bound := SAMPLING.get(name)) is None or (bound is _INTERNAL and value):
            raise InvalidRequest(
                f"sampling_params: {shown(name)} is not one of them; {_hint(name)}"
            )
        if value is not None:
            _check_field(name, value, bound, limits)


def check_options(prompt: Any) -> None:
    """Raise `InvalidRequest` for what a `GenerateReqInput` of one prompt asks for in vain."""
    for name in _CHECKED_EARLY:
        if (value := getattr(prompt, name, None)) is not None:
            _check_field(name, value, OPTIONS[name], _NO_LIMITS)


def _check_field(name: str, value: Any, bound: Bound, limits: EngineInfo) -> None:
    if expected := bound.expected(value, limits):
        raise InvalidRequest(f"{name}={shown(value)}: wanted {expected}")


def _hint(name: Any) -> str:
    if name in OPTIONS:
        return f"wanted as an argument beside sampling_params: {name}=…"
    return sampling_names.hint(name, _SETTABLE)


def smallest(infos: list[EngineInfo]) -> EngineInfo:
    """Return what every one of these engines can do."""
    names = ("max_total_tokens", "context_length", "vocab_size")
    least = {name: min(getattr(info, name) for info in infos) for name in names}
    return msgspec.structs.replace(infos[0], **least)


def _check_ids(ids: list[int], limits: EngineInfo) -> None:
    if not ids:
        raise InvalidRequest("the prompt is empty: wanted at least one token")
    if len(ids) < limits.context_length and (min(ids) < 0 or max(ids) >= limits.vocab_size):
        wrong = next(i for i in ids if not 0 <= i < limits.vocab_size)
        raise InvalidRequest(
            f"token id {shown(wrong)} in the prompt: wanted 0 to {limits.vocab_size - 1}"
        )


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


_GRAMMARS = ("json_schema", "regex", "ebnf", "structural_tag")


def _check_together(request: Request) -> None:
    params, options = request.sampling_params, request.options
    least, most = params.get("min_new_tokens") or 0, params.get("max_new_tokens")
    if most is not None and least > most:
        raise InvalidRequest(f"min_new_tokens={least}: wanted at most max_new_tokens={most}")
    given = [name for name in _GRAMMARS if params.get(name)]
    if len(given) > 1:
        raise InvalidRequest(f"{' and '.join(given)}: wanted at most one of {', '.join(_GRAMMARS)}")
    if options.logprob_start_len >= len(request.input_ids):
        raise InvalidRequest(
            f"logprob_start_len={options.logprob_start_len}: wanted less than the prompt's "
            f"{len(request.input_ids)} tokens"
        )
