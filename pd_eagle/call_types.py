"""What `PDEngine`'s calls take and return, for type checkers and editors.

Names are SGLang's own (0.5.23); what they mean is `requests/gate.py`'s and the engines'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from pd_eagle.plan.setting_arguments import SettingArguments
from pd_eagle.plan.sglang_arguments import SGLangArguments

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: (log probability, token id, text of the token, if it was asked for)
TokenLogprob = tuple[float | None, int, str | None]


class EngineArguments(SettingArguments, SGLangArguments, total=False):
    """Keyword arguments of `PDEngine`: settings, and what `sglang.Engine` takes."""


class SamplingParams(TypedDict, total=False):
    """How the tokens of an answer are chosen, and where it ends."""

    max_new_tokens: int | None
    min_new_tokens: int
    stop: str | list[str] | None
    stop_token_ids: list[int] | None
    stop_regex: str | list[str] | None
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    frequency_penalty: float
    presence_penalty: float
    repetition_penalty: float
    n: int
    json_schema: str | None
    regex: str | None
    ebnf: str | None
    structural_tag: str | None
    ignore_eos: bool
    skip_special_tokens: bool
    spaces_between_special_tokens: bool
    no_stop_trim: bool
    stream_interval: int | None
    logit_bias: dict[str, float] | None
    sampling_seed: int | None
    custom_params: dict[str, Any] | None


class GenerateOptions(TypedDict, total=False):
    """The further arguments of `generate`; a list is one value for each prompt."""

    return_logprob: bool | list[bool] | None
    logprob_start_len: int | list[int] | None
    top_logprobs_num: int | list[int] | None
    token_ids_logprob: list[int] | list[list[int]] | None
    return_text_in_logprobs: bool
    custom_logit_processor: str | list[str] | None
    require_reasoning: bool
    max_thinking_tokens: int | None
    external_trace_header: dict[str, str] | None
    rid: str | list[str] | None
    priority: int | None
    cache_salt: str | list[str] | None
    extra_key: str | list[str] | None


class MetaInfo(TypedDict, total=False):
    """About one answer. Times are in seconds; the last chunk of a stream has all."""

    id: str
    finish_reason: Any  # None until the end, then a dictionary with its "type"
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    weight_version: str
    e2e_latency: float
    input_token_logprobs: list[TokenLogprob]
    output_token_logprobs: list[TokenLogprob]
    input_top_logprobs: list[list[TokenLogprob] | None]
    output_top_logprobs: list[list[TokenLogprob] | None]
    input_token_ids_logprobs: list[list[TokenLogprob] | None]
    output_token_ids_logprobs: list[list[TokenLogprob] | None]
    spec_accept_length: float
    spec_accept_rate: float


class GenerateResult(TypedDict):
    """One answer, or what there is of it so far; in a stream `index` says of which prompt."""

    text: str
    output_ids: list[int]
    meta_info: MetaInfo
    index: NotRequired[int]


if TYPE_CHECKING:
    Params = SamplingParams | Mapping[str, Any]
    ManyParams = Params | Sequence[Params]
