"""Suggestions for names of sampling parameters that SGLang does not have.

It knows nothing of their values.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

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


def hint(name: object, known: Collection[str]) -> str:
    """Return what was meant by `name`, of those that are `known`."""
    asked = str(name)[:80].lower().replace("-", "_")
    meant = _ELSEWHERE.get(asked) or next(iter(difflib.get_close_matches(asked, known, 1)), None)
    return f"did you mean {meant}?" if meant else f"wanted one of {', '.join(sorted(known))}"
