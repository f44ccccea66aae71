"""A stand-in for SGLang's `GenerateReqInput`, whose import takes seconds.

It has what `generate_api` uses of it; tests/engine/test_contract_generate_input.py holds both
together.
"""

from __future__ import annotations

import dataclasses
import uuid
from dataclasses import dataclass
from typing import Any


@dataclass
class GenerateInput:
    """SGLang 0.5.23, srt/managers/io_struct.py, as far as it is used here."""

    text: Any = None
    input_ids: Any = None
    sampling_params: Any = None
    rid: Any = None
    stream: bool = False
    # carried in Options
    return_logprob: Any = None
    logprob_start_len: Any = None
    top_logprobs_num: Any = None
    token_ids_logprob: Any = None
    return_text_in_logprobs: bool = False
    require_reasoning: bool = False
    max_thinking_tokens: int | None = None
    custom_logit_processor: Any = None
    priority: int | None = None
    extra_key: Any = None
    cache_salt: Any = None
    external_trace_header: dict[str, Any] | None = None
    return_prompt_token_ids: bool = False
    # refused
    input_embeds: Any = None
    image_data: Any = None
    video_data: Any = None
    audio_data: Any = None
    lora_path: Any = None
    session_id: str | None = None
    session_params: dict[str, Any] | None = None
    watermark: Any = None
    positional_embed_overrides: Any = None
    return_hidden_states: Any = False
    return_routed_experts: bool = False
    return_indexer_topk: bool = False
    return_sampling_mask: Any = None
    return_flat_raw_top_logprobs: bool = False
    return_flat_raw_output_top_logprobs: bool = False

    def normalize_batch_and_arguments(self) -> None:
        given = self.text if self.text is not None else self.input_ids
        if given is None:
            raise ValueError("Either text, input_ids or input_embeds should be provided.")
        if self.input_ids is not None and len(self.input_ids) == 0:
            raise ValueError("input_ids cannot be empty.")
        self.is_single = isinstance(given, str) or isinstance(given[0], int)
        self.batch_size = 1 if self.is_single else len(given)
        params = self.sampling_params
        first = params[0] if isinstance(params, list) else params or {}
        self.parallel_sample_num = first.get("n", 1)
        if self.is_single and self.parallel_sample_num > 1:
            self.is_single = False
            self.text, self.input_ids = (
                None if v is None else [v] for v in (self.text, self.input_ids)
            )
        if self.is_single:
            self._normalize(self)
        else:
            self._items = [self._item(i) for i in range(self.batch_size)]

    def _item(self, i: int) -> GenerateInput:
        changes = {
            name: value[i]
            for name in ("text", "input_ids", "sampling_params", "rid", *_PER_ITEM)
            if isinstance(value := getattr(self, name), list)
        }
        if isinstance(self.rid, str):
            changes["rid"] = f"{self.rid}_{i}"
        item = dataclasses.replace(self, **changes)
        self._normalize(item)
        return item

    def _normalize(self, item: GenerateInput) -> None:
        item.rid = uuid.uuid4().hex if item.rid is None else item.rid
        item.sampling_params = item.sampling_params or {}
        item.return_logprob = bool(item.return_logprob)
        item.logprob_start_len = -1 if item.logprob_start_len is None else item.logprob_start_len
        item.top_logprobs_num = item.top_logprobs_num or 0

    def __getitem__(self, i: int) -> GenerateInput:
        return self._items[i]


_PER_ITEM = (
    "return_logprob",
    "logprob_start_len",
    "top_logprobs_num",
    "custom_logit_processor",
    "extra_key",
    "cache_salt",
    "lora_path",
)
