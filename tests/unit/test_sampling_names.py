"""Names of sampling parameters: SGLang's pass, others get a suggestion."""

from __future__ import annotations

from typing import Any

import pytest

from pd_eagle.errors import InvalidRequest
from pd_eagle.requests import gate
from tests.unit.test_gate import LIMITS


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_tokens", "max_new_tokens"),
        ("max_completion_tokens", "max_new_tokens"),
        ("min_tokens", "min_new_tokens"),
        ("seed", "sampling_seed"),
        ("temprature", "temperature"),
        ("Top-P", "top_p"),
        ("stop_tokens_ids", "stop_token_ids"),
        ("repeat_penalty", "repetition_penalty"),
        ("num_beams", "beam_width"),
    ],
)
def test_a_wrong_name_gets_a_suggestion(name: str, meant: str) -> None:
    with pytest.raises(InvalidRequest, match=f"'{name}' is not one .*did you mean {meant}\\?"):
        gate.check_sampling({"temperature": 0, name: 1}, LIMITS)


@pytest.mark.parametrize("name", ["colour", 7, "x" * 1000])
def test_a_name_that_is_like_none_gets_the_list(name: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"wanted one of beam_width, .*, top_p") as caught:
        gate.check_sampling({name: 1}, LIMITS)
    assert len(str(caught.value)) < 800


def test_what_sglang_sets_for_itself_is_not_for_callers() -> None:
    with pytest.raises(InvalidRequest, match="is_normalized"):
        gate.check_sampling({"is_normalized": True}, LIMITS)


def test_all_names_pass() -> None:
    gate.check_sampling(dict.fromkeys(gate.SAMPLING), LIMITS)
