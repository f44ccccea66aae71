"""Fields of `/generate` that the comparison with SGLang's server tries, right and wrong ones."""

from __future__ import annotations

from typing import Any

PROMPTS = (
    "w5 w17 w200",
    "w1",
    "w99 w98 w97 w96",
    "w7 w7 w7 w7 w7 w7 w7 w7 w7",
    "w250 w3 w3 w120",
    "w42",
)
CONTEXT = 256
#: SGLang's scheduler dies of these (0.5.23), so that it is not asked.

SAMPLING: dict[str, dict[str, Any]] = {
    "plain": {},
    "stop": {"stop": ["w1"]},
    "stop token": {"stop_token_ids": [10, 20, 30]},
    "min": {"min_new_tokens": 4},
    "ignore eos": {"ignore_eos": True},
    "penalty": {"presence_penalty": 1.0},
    "top_k": {"top_k": 5},
    "regex": {"regex": "w1|w5|w9"},
    "dead end": {"regex": "w1 w2"},
    "none": {"max_new_tokens": 0},
    "spaces": {"spaces_between_special_tokens": False},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "ids": {"text": None, "input_ids": [5, 17, 200]},
    "texts": {"text": list(PROMPTS[:3])},
    "lists of ids": {"text": None, "input_ids": [[5, 17], [200]]},
    "logprobs": {"return_logprob": True},
    "all logprobs": {"return_logprob": True, "logprob_start_len": 0},
    "top logprobs": {"return_logprob": True, "top_logprobs_num": 3, "logprob_start_len": 0},
    "given ids": {"return_logprob": True, "token_ids_logprob": [1, 2, 3]},
    "words in logprobs": {"return_logprob": True, "return_text_in_logprobs": True},
    "a name": {"rid": "compare-generate"},
    "lists of options": {
        "text": list(PROMPTS[:2]),
        "return_logprob": [True, False],
        "sampling_params": [
            {"max_new_tokens": 2, "temperature": 0},
            {"max_new_tokens": 3, "temperature": 0},
        ],
    },
    "samples": {"sampling_params": {"n": 2, "max_new_tokens": 4, "temperature": 0}},
}
WRONG_GENERATE: dict[str, dict[str, Any]] = {
    "nothing": {"text": None},
    "a number": {"text": 5},
    "both": {"input_ids": [1]},
    "empty": {"text": ""},
    "no texts": {"text": []},
    "no ids": {"text": None, "input_ids": []},
    "id outside": {"text": None, "input_ids": [999_999]},
    "too long": {"text": "w1 " * 2 * CONTEXT},
    "too much": {"sampling_params": {"max_new_tokens": 10_000}},
    "below": {"sampling_params": {"max_new_tokens": -1}},
    "unknown parameter": {"sampling_params": {"max_tokens": 5}},
    "unknown field": {"maximum": 5},
    "image": {"image_data": "x"},
    "session": {"session_params": {"id": "x"}},
    "start after the prompt": {"return_logprob": True, "logprob_start_len": 100},
    "hidden states": {"return_hidden_states": True},
}
