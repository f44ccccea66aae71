"""The names of sampling parameters, SGLang's own, and what was meant by one that is not there.

It knows nothing of their values.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from pd_eagle.errors import InvalidRequest

#: What callers may set of `SamplingParams` (SGLang 0.5.23, srt/sampling/sampling_params.py).
NAMES = frozenset(
    {
        "beam_width",
        "custom_params",
        "ebnf",
        "ebnf_full_assistant",  # set by SGLang's own OpenAI classes
        "frequency_penalty",
        "ignore_eos",
        "json_schema",
        "logit_bias",
        "max_new_tokens",
        "min_new_tokens",
        "min_p",
        "n",
        "no_stop_trim",
        "presence_penalty",
        "regex",
        "repetition_penalty",
        "sampling_seed",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "stop",
        "stop_regex",
        "stop_token_ids",
        "stream_interval",
        "structural_tag",
        "temperature",
        "top_k",
        "top_p",
        "watermark",
    }
)

#: Other libraries' names for the same, where no spelling leads to SGLang's.
_ELSEWHERE = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "max_length": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "min_length": "min_new_tokens",
    "seed": "sampling_seed",
    "random_seed": "sampling_seed",
    "best_of": "n",
    "num_return_sequences": "n",
    "num_beams": "beam_width",
    "stop_sequences": "stop",
    "stop_strings": "stop",
    "eos_token_id": "stop_token_ids",
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_grammar": "ebnf",
    "grammar": "ebnf",
}


def check(params: object) -> Mapping[str, object]:
    """Return `params`; raise `InvalidRequest` with a suggestion for a name that nobody reads."""
    if params is None:
        return {}
    if not isinstance(params, Mapping):
        raise InvalidRequest(f"sampling_params={params!r:.80}: wanted a dictionary")
    for name in params:
        if name not in NAMES:
            raise InvalidRequest(f"sampling_params: {name!r:.80} is not one of them; {_hint(name)}")
    return params


def _hint(name: object) -> str:
    asked = str(name).lower().replace("-", "_")
    meant = _ELSEWHERE.get(asked) or next(iter(difflib.get_close_matches(asked, NAMES, 1)), None)
    return f"did you mean {meant}?" if meant else f"wanted one of {', '.join(sorted(NAMES))}"
