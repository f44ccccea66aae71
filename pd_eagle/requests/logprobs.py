"""Log probabilities as SGLang's engines return them: tuples, which MessagePack makes lists of.

It does not know what they are of.
"""

from __future__ import annotations

from typing import Any

_OF_TOKENS = frozenset({"input_token_logprobs", "output_token_logprobs"})
_OF_POSITIONS = frozenset(
    {
        *("input_top_logprobs", "output_top_logprobs"),
        *("input_token_ids_logprobs", "output_token_ids_logprobs"),
    }
)


def as_tuples(name: str, entries: list[Any]) -> list[Any]:
    """Return the entries of `meta_info[name]`: (log probability, token id, text) each.

    A list of such for each position in `…_top_logprobs` and `…_token_ids_logprobs`, or None.
    """
    if name in _OF_TOKENS:
        return [tuple(entry) for entry in entries]
    if name in _OF_POSITIONS:
        return [position and [tuple(entry) for entry in position] for position in entries]
    return entries
