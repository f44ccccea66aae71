"""Takes lines that change with every request off the beginning of a system prompt.

It does not know which lines these are.
"""

from __future__ import annotations

from typing import Any

_LONGEST_PREAMBLE = 256


def without_preamble(system: Any, preambles: tuple[str, ...]) -> Any:
    """Return `system`, a text or a list of blocks, without its first lines that begin with one of
    `preambles`: they change with every request, and all that follows would be computed again.
    """
    if not preambles:
        return system
    if isinstance(system, str):
        return _without_lines(system, preambles)
    blocks = list(system) if isinstance(system, list) else []
    while blocks and isinstance(blocks[0], dict) and isinstance(blocks[0].get("text"), str):
        text = _without_lines(blocks[0]["text"], preambles)
        if text.strip():
            return [blocks[0] | {"text": text}, *blocks[1:]]
        del blocks[0]
    return blocks if isinstance(system, list) else system


def _without_lines(text: str, preambles: tuple[str, ...]) -> str:
    while text.lstrip()[:_LONGEST_PREAMBLE].lower().startswith(preambles):
        _, _, text = text.lstrip().partition("\n")
    return text
