"""Bounds on OpenAI request bodies: on every field of SGLang's two request classes, and in total.

Checked on the JSON, before templates, tokenizing and anything whose cost grows with the request. It
does not know how a body was read, or what SGLang does with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pd_eagle.errors import InvalidRequest
from pd_eagle.requests.bounds import (
    INT32_MAX,
    Bound,
    Each,
    Flag,
    Json,
    Number,
    Text,
    TokenIds,
    Unused,
    Whole,
    as_number,
    measure,
    shown,
)
from pd_eagle.requests.gate import MAX_LABEL_BYTES, MAX_SAMPLES, OPTIONS, SAMPLING
from pd_eagle.requests.schemas import programs_within, schema_expected

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pd_eagle.messages import EngineInfo

MAX_MESSAGES = 2**12
#: Of all messages together: pydantic tries each part as six classes.
MAX_PARTS = 2**10
#: Content parts that a text model takes (SGLang 0.5.23, `ChatCompletionMessageContentPart`).
_PARTS = ("text", "thinking", "reasoning", "tool_reference")
#: Of all answers to one request; building more would take seconds.
MAX_LOGPROBS = 2**17
_USUAL_TOP_LOGPROBS = 20  # OpenAI's maximum
_USUAL_TOKENS = 1024
#: Every definition is validated with jsonschema (about 0.1 ms a value) and rendered.
MAX_TOOLS = 512
MAX_TOOL_VALUES = 2**14
MAX_TOOL_BYTES = 2**20

SMALL = Json(max_values=64, max_depth=4, max_bytes=2**13)
#: Parameters of transformers' `apply_chat_template` that SGLang passes itself.
_TEMPLATE_ARGUMENTS = frozenset(
    (
        *("conversation", "messages", "tools", "chat_template", "add_generation_prompt"),
        *("continue_final_message", "tokenize", "padding", "truncation", "max_length"),
        *("return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
        *("self", "kwargs"),
    )
)


@dataclass(frozen=True, slots=True)
class _Messages:
    def expected(self, value: Any, limits: EngineInfo) -> str | None:
        if isinstance(value, list) and len(value) > MAX_MESSAGES:
            return f"at most {MAX_MESSAGES} messages"
        tools: list[Any] = []
        parts = 0
        for message in value if isinstance(value, list) else ():
            if not isinstance(message, dict):
                continue
            for name in ("content", "tool_calls"):
                parts += len(message[name]) if isinstance(message.get(name), list) else 0
            if expected := _parts_expected(message.get("content")):
                return expected
            if isinstance(message.get("tools"), list):
                tools += message["tools"]
        if parts > MAX_PARTS:
            return f"messages with at most {MAX_PARTS} parts and tool calls together"
        found = Tools().expected(tools, limits) if tools else None
        return found and f"messages whose tools are {found}"


def _parts_expected(content: Any) -> str | None:
    for part in content[: MAX_PARTS + 1] if isinstance(content, list) else ():
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in _PARTS or (kind == "text" and not isinstance(part.get("text"), str)):
            return f"text, or parts such as {{'type': 'text', 'text': …}} (found {shown(part)})"
    return None


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A text, token ids, or a list of either; all items of a list of one kind."""

    def expected(self, value: Any, limits: EngineInfo) -> str | None:
        if isinstance(value, str) or not value:
            return None
        form = "text, a list of token ids, or a list of either"
        if not isinstance(value, list):
            return form
        ids = TokenIds(INT32_MAX)
        if isinstance(value[0], int):
            return ids.expected(value, limits)
        for item in value:
            if type(item) is not type(value[0]) or not isinstance(item, str | list):
                return f"{form} (found {shown(item)})"
            if isinstance(item, list) and (found := ids.expected(item, limits)):
                return f"lists of token ids, each {found}"
        return None


@dataclass(frozen=True, slots=True)
class Tools:
    """Tools; `schema_in` is the path from one to the schema of its arguments."""

    schema_in: tuple[str, ...] = ("function", "parameters")

    def expected(self, value: Any, limits: EngineInfo) -> str | None:
        if not isinstance(value, list):
            return "a list of tools"
        if len(value) > MAX_TOOLS:
            return f"at most {MAX_TOOLS} tools"
        if size := measure(value, MAX_TOOL_VALUES, 2 * 32, MAX_TOOL_BYTES):
            return f"tools with {size} together"
        for tool in value:
            parameters = tool
            for name in self.schema_in:
                parameters = parameters.get(name) if isinstance(parameters, dict) else None
            if parameters is not None and (found := schema_expected(parameters)):
                return f"tools whose parameters are {found}"
        return None


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """An object whose schemas and grammars are not too large to compile."""

    def expected(self, value: Any, limits: EngineInfo) -> str | None:
        if not isinstance(value, dict):
            return 'an object such as {"type": "json_object"}'
        return programs_within(value)


@dataclass(frozen=True, slots=True)
class TemplateArguments:
    """Variables of the chat template."""

    def expected(self, value: Any, limits: EngineInfo) -> str | None:
        if not isinstance(value, dict):
            return "an object"
        for name in _TEMPLATE_ARGUMENTS & value.keys():
            return f"no {name!r} in it, which is set by the request's own fields"
        return Json(max_values=4096, max_depth=16, max_bytes=2**20).expected(value, limits)


#: Every field of SGLang's `ChatCompletionRequest` and `CompletionRequest`.
BODY: dict[str, Bound] = {
    "model": Text(MAX_LABEL_BYTES),
    "messages": _Messages(),
    "prompt": _Prompt(),
    "input_ids": TokenIds(INT32_MAX),
    "tools": Tools(),
    "tool_choice": SMALL,
    "response_format": ResponseFormat(),
    "chat_template_kwargs": TemplateArguments(),
    "logprobs": OPTIONS["top_logprobs_num"],  # a chat's is a flag: 0 or 1 to pydantic
    "top_logprobs": OPTIONS["top_logprobs_num"],
    "stream_options": SMALL,
    "reasoning_effort": SMALL,
    "reasoning": SMALL,
    "thinking": SMALL,
    "task": SMALL,
    "custom_logit_processor": Each(OPTIONS["custom_logit_processor"], MAX_SAMPLES),
    "rid": Each(OPTIONS["rid"], MAX_SAMPLES),
    "extra_key": Each(OPTIONS["extra_key"], MAX_SAMPLES),
    "cache_salt": Each(OPTIONS["cache_salt"], MAX_SAMPLES),
    "priority": OPTIONS["priority"],
    # sampling, by OpenAI's names
    "max_tokens": SAMPLING["max_new_tokens"],
    "max_completion_tokens": SAMPLING["max_new_tokens"],
    "min_tokens": SAMPLING["min_new_tokens"],
    "seed": SAMPLING["sampling_seed"],
    "best_of": SAMPLING["n"],
    **{
        name: SAMPLING[name]
        for name in (
            *("frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias"),
            *("n", "stop", "stop_token_ids", "stop_regex", "temperature", "top_p", "top_k"),
            *("min_p", "json_schema", "regex", "ebnf", "custom_params", "watermark"),
            *("no_stop_trim", "ignore_eos", "skip_special_tokens"),
        )
    },
    # refused or ignored here, as in SGLang's native API
    **{
        name: OPTIONS[name]
        for name in (
            *("stream", "lora_path", "session_id", "session_params", "return_hidden_states"),
            *("return_routed_experts", "routed_experts_start_len", "return_sampling_mask"),
            *("sampling_logprobs_mode", "return_flat_raw_output_top_logprobs"),
            *("return_flat_raw_top_logprobs_b64", "images_config", "video_config"),
            *("mm_processor_kwargs", "use_audio_in_video", "max_dynamic_patch"),
            *("min_dynamic_patch", "custom_labels", "data_parallel_rank", "routed_dp_rank"),
            *("disagg_prefill_dp_rank", "return_prompt_token_ids"),
        )
    },
    **dict.fromkeys(
        (
            *("echo", "parallel_tool_calls", "return_cached_tokens_details"),
            *("return_spec_tokens_details", "return_token_ids", "return_meta_info"),
            *("return_input_ids_in_sglext", "return_output_ids_in_sglext"),
            *("separate_reasoning", "stream_reasoning", "continue_final_message"),
        ),
        Flag(),
    ),
    # set by a router, one for each prompt; not used
    **dict.fromkeys(
        ("bootstrap_host", "bootstrap_port", "bootstrap_room"),
        Json(max_values=MAX_SAMPLES + 1, max_depth=1, max_bytes=2**16),
    ),
    **dict.fromkeys(("user", "suffix"), Unused("SGLang makes nothing of it")),
}


def check(
    fields: Mapping[str, Any], limits: EngineInfo, places: int, table: Mapping[str, Bound] = BODY
) -> None:
    """Raise `InvalidRequest` for a body that is too large for an engine, or would crash it.

    `table` has the fields of its endpoint. `places` is how many requests may run and wait in all.
    Values of a wrong type are left to the request class, whose message is better.
    """
    for name, bound in table.items():
        if (value := fields.get(name)) is not None:
            _check(name, value, bound, limits)
    total = _check_samples(fields, places)
    _check_logprobs(fields, total)


def _check(name: str, value: Any, bound: Bound, limits: EngineInfo) -> None:
    if isinstance(bound, Flag):
        return
    if isinstance(bound, Whole | Number):
        value = as_number(value)
        if isinstance(value, str) and len(value) < 80:
            return
    if expected := bound.expected(value, limits):
        raise InvalidRequest(f"{name}={shown(value)}: wanted {expected}")


def _check_samples(fields: Mapping[str, Any], places: int) -> int:
    """Return how many answers are asked for."""
    prompt, samples = fields.get("prompt"), as_number(fields.get("n"))
    many = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
    prompts = len(prompt) if many and isinstance(prompt, list) else 1
    total = prompts * (samples if isinstance(samples, int) else 1)
    if total > places:
        raise InvalidRequest(
            f"{prompts} prompts with n={samples or 1}: wanted at most {places} answers in one "
            "request, as many as may run and wait here (PD_MAX_INFLIGHT, PD_MAX_QUEUE)"
        )
    return total


def _check_logprobs(fields: Mapping[str, Any], answers: int) -> None:
    name = "top_logprobs" if fields.get("top_logprobs") else "logprobs"
    top = as_number(fields.get(name))
    most = as_number(fields.get("max_completion_tokens") or fields.get("max_tokens"))
    if not isinstance(top, int) or (answers == 1 and top <= _USUAL_TOP_LOGPROBS):
        return
    tokens = most if isinstance(most, int) else _USUAL_TOKENS
    if answers * tokens * (top + 1) > MAX_LOGPROBS:
        raise InvalidRequest(
            f"{name}={top} for {answers} answers of {tokens} tokens: wanted at most {MAX_LOGPROBS} "
            "log probabilities in one request"
        )
