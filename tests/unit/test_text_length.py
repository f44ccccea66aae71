"""A text that cannot fit is refused after no more pieces than would fill the context."""

from __future__ import annotations

from typing import Any

import pytest

from pd_eagle.errors import ContextLengthExceeded
from pd_eagle.requests.text_length import refuse_too_long


class Words:
    """A tokenizer without a fast backend: a token a word; `read` characters so far."""

    def __init__(self) -> None:
        self.read = 0

    def __call__(self, text: str) -> Any:
        self.read += len(text)
        return {"input_ids": text.split()}


class Fast(Words):
    """One with a backend; it must not make Python lists."""

    @property
    def backend_tokenizer(self) -> Any:
        return self

    def encode(self, text: str, add_special_tokens: bool) -> list[str]:
        self.read += len(text)
        return text.split()

    def __call__(self, text: str) -> Any:
        raise AssertionError("the backend was there")


@pytest.mark.parametrize("kind", [Words, Fast])
def test_a_long_text_is_refused_after_its_first_pieces(kind: type[Words]) -> None:
    tokenizer = kind()
    with pytest.raises(ContextLengthExceeded, match="10000000 characters has more than 1000"):
        refuse_too_long(tokenizer, "ab " * 3_333_333 + "a", 1000)
    assert tokenizer.read < 100_000


def test_a_short_text_is_not_counted() -> None:
    tokenizer = Words()
    refuse_too_long(tokenizer, "a " * 8000, 1000)
    assert tokenizer.read == 0


def test_long_words_may_fit() -> None:
    tokenizer = Words()
    refuse_too_long(tokenizer, "x" * 10**6, 1000)
    assert tokenizer.read == 10**6
