"""What a body may look like before its fields are read."""

from __future__ import annotations

import codecs

import pytest

from pd_eagle.errors import InvalidRequest
from pd_eagle.http.body_reading import load


@pytest.mark.parametrize("before", [b"", codecs.BOM_UTF8])
def test_a_byte_order_mark_is_passed_over(before: bytes) -> None:
    assert load(before + b'{"prompt": "x"}', 100) == {"prompt": "x"}


@pytest.mark.parametrize("body", [b"[]", b"null", b"{", codecs.BOM_UTF8, codecs.BOM_UTF16])
def test_what_is_no_object_is_told(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="the body is"):
        load(body, 100)


def test_too_many_values_are_told_before_they_are_read() -> None:
    with pytest.raises(InvalidRequest, match="more than 8 values"):
        load(b'{"prompt": [' + b"1," * 100 + b"1]}", 8)
