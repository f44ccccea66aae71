"""Bounds on the bodies of SGLang's own routes."""

from __future__ import annotations

from typing import Any

import pytest

from pd_eagle.errors import InvalidRequest
from pd_eagle.http.native_bodies import CHECKS, MAX_TEXT_BYTES
from pd_eagle.messages import EngineInfo

LIMITS = EngineInfo(1, [2], max_total_tokens=4096, context_length=1024, vocab_size=100)
PLACES = 8

GOOD: list[tuple[str, dict[str, Any]]] = [
    ("generate", {"text": "a"}),
    ("generate", {"text": ["a"] * 8}),
    ("generate", {"input_ids": [[1], [2]], "return_logprob": [True, False]}),
    ("generate", {"text": "a", "sampling_params": {"n": 8}}),
    ("generate", {"text": ["a", "b"], "sampling_params": [{"n": 4}, {"n": 4}]}),
    ("generate", {"text": "a", "return_logprob": True, "token_ids_logprob": [1, 2]}),
    ("generate", {"text": ["a", "b"], "token_ids_logprob": [[1], None]}),
    ("generate", {"text": "a", "bootstrap_room": [3], "rid": "x", "stream": True}),
    ("tokenize", {"prompt": "a"}),
    ("tokenize", {"prompt": ["a", "b"], "add_special_tokens": False}),
    ("tokenize", {"messages": [{"role": "user", "content": "hi"}]}),
    ("detokenize", {"tokens": []}),
    ("detokenize", {"tokens": [1, 99]}),
    ("detokenize", {"tokens": [[1], [2]]}),
    ("score", {"query": "a", "items": ["b", "c"], "label_token_ids": [1, 2]}),
    ("score", {"query": [1], "items": [[2], [3]], "label_token_ids": [[1], [2]]}),
]

BAD: list[tuple[str, dict[str, Any], str]] = [
    ("generate", {"text": ["a"] * 9}, "9 prompts"),
    ("generate", {"text": ["a"] * 5, "sampling_params": {"n": 2}}, "PD_MAX_INFLIGHT"),
    ("generate", {"text": "a", "sampling_params": [{"n": 9}]}, "n=9"),
    ("generate", {"text": "a", "sampling_params": {"n": "9"}}, "n=9"),
    ("generate", {"text": "a", "image_data": ["x"]}, "image_data"),
    ("generate", {"text": "a", "top_logprobs_num": 129}, "top_logprobs_num"),
    ("generate", {"text": "a", "top_logprobs_num": [1, 129]}, "top_logprobs_num"),
    ("generate", {"text": "a", "token_ids_logprob": [[1], [100]]}, "token_ids_logprob"),
    ("generate", {"text": "a", "logprob_start_len": 2000}, "logprob_start_len"),
    ("generate", {"text": "a", "return_logprob": "yes"}, "return_logprob"),
    ("generate", {"text": "a", "rid": "x" * 300}, "rid"),
    ("generate", {"text": "a", "lora_path": ["x"]}, "lora_path"),
    (
        "generate",
        {
            "text": ["a" * 1024] * 8,
            "return_logprob": True,
            "top_logprobs_num": 20,
            "logprob_start_len": 0,
        },
        "log probabilities in one request",
    ),
    (
        "generate",
        {
            "text": ["a"] * 8,
            "return_logprob": True,
            "top_logprobs_num": 100,
            "sampling_params": {"max_new_tokens": 1000},
        },
        "log probabilities in one request",
    ),
    ("tokenize", {"prompt": "a" * (MAX_TEXT_BYTES + 1)}, "prompt"),
    ("tokenize", {"prompt": ["a" * MAX_TEXT_BYTES] * 2}, "characters in all"),
    ("tokenize", {"prompt": ["a"] * 1025}, "prompt"),
    ("tokenize", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
    ("detokenize", {"tokens": [100]}, "from 0 to 99"),
    ("detokenize", {"tokens": [-1]}, "from 0 to 99"),
    ("detokenize", {"tokens": [[1], 2]}, "tokens=2"),
    ("detokenize", {"tokens": [[1]] * 1025}, "1024"),
    ("detokenize", {"tokens": "abc"}, "a list of token ids"),
    ("detokenize", {}, "a list of token ids"),
    ("score", {"query": "a", "items": ["b"] * 9}, "9 items"),
    ("score", {"query": "a", "items": ["b"], "label_token_ids": [100]}, "label_token_ids"),
    ("score", {"query": "a", "items": ["b"], "label_token_ids": [1] * 129}, "label_token_ids"),
    ("score", {"query": "a", "items": [[100]]}, "items"),
    ("score", {"query": "a", "items": ["b"], "item_embed_overrides": [[[1.0]]]}, "embeddings"),
    ("score", {"query": "a", "items": ["b"], "score_extraction_token": "x"}, "last position"),
    ("score", {"query": "a", "items": ["b"], "temperature": 0}, "temperature"),
]


@pytest.mark.parametrize(("endpoint", "fields"), GOOD)
def test_what_is_taken(endpoint: str, fields: dict[str, Any]) -> None:
    CHECKS[endpoint](fields, LIMITS, PLACES)


@pytest.mark.parametrize(("endpoint", "fields", "says"), BAD)
def test_what_is_refused(endpoint: str, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        CHECKS[endpoint](fields, LIMITS, PLACES)
    assert says in caught.value.message
    assert len(caught.value.message) < 500
