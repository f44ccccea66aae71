"""Values are counted outside strings only, whatever the strings hold."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pd_eagle.requests.json_size import has_more_values

CASES: dict[str, tuple[Any, int]] = {
    "a list": ([1, 2, 3], 2 + 7),
    "commas in a string": (["a,b,[c", 2], 1 + 1 + 7),
    "quotes in a string": (['a",[', 'b\\",', "\\", 1], 3 + 3 + 7),
    "an object": ({"a": [1, 2], "b,": {}}, 2 + 2 + 3 * 7),
    "a bare string": ('",,,,"', 1),
}


@pytest.mark.parametrize(("value", "count"), CASES.values(), ids=CASES)
def test_the_count_is_of_commas_and_brackets_outside_strings(value: Any, count: int) -> None:
    text = json.dumps(value).encode()
    assert has_more_values(text, count - 1)
    assert not has_more_values(text, count)


def test_a_string_without_an_end_holds_nothing() -> None:
    assert not has_more_values(b'["a, b, c', 8)
    assert not has_more_values(b'["a, b, c\\"', 8)
