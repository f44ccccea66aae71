"""Whether a text is too long for a prompt, estimated from its first pieces before it is tokenized.

It knows a tokenizer and a context's length, and no request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pd_eagle.errors import ContextLengthExceeded

if TYPE_CHECKING:
    from collections.abc import Callable

_PIECE_CHARS = 2**14
#: Tokens by which the pieces on both sides of a cut may together exceed the whole.
_SLACK_PER_PIECE = 16
#: Texts up to so many characters a token of the context are as quickly tokenized as counted.
_USUAL_CHARS_PER_TOKEN = 4


def refuse_too_long(tokenizer: Any, text: str, context_length: int) -> None:
    """Raise `ContextLengthExceeded` if `text` certainly has more tokens than `context_length`.

    Costs no more than tokenizing what would fit, however long the text is; a text that is only
    a little too long may pass.
    """
    if len(text) <= max(_USUAL_CHARS_PER_TOKEN * context_length, _PIECE_CHARS):
        return
    count = _counter(tokenizer)
    tokens = 0
    for start in range(0, len(text), _PIECE_CHARS):
        tokens += max(count(text[start : start + _PIECE_CHARS]) - _SLACK_PER_PIECE, 0)
        if tokens > context_length:
            raise ContextLengthExceeded(
                f"a text of {len(text)} characters has more than {context_length} tokens in its "
                f"first {start + _PIECE_CHARS}: wanted fewer than the context's {context_length}"
            )


def _counter(tokenizer: Any) -> Callable[[str], int]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return lambda piece: len(tokenizer(piece)["input_ids"])
    # Without a Python list of its tokens, and without Python's lock.
    return lambda piece: len(backend.encode(piece, add_special_tokens=False))
