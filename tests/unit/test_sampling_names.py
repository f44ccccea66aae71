"""Names of sampling parameters: SGLang's pass, others get a suggestion."""

from __future__ import annotations

import pytest

from pd_eagle import sampling_names
from pd_eagle.errors import InvalidRequest


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
        sampling_names.check({"temperature": 0, name: 1})


@pytest.mark.parametrize("name", ["colour", 7, "x" * 1000])
def test_a_name_that_is_like_none_gets_the_list(name: object) -> None:
    with pytest.raises(InvalidRequest, match=r"wanted one of beam_width, .*, top_p") as caught:
        sampling_names.check({name: 1})
    assert len(str(caught.value)) < 800


def test_what_sglang_sets_for_itself_is_not_for_callers() -> None:
    with pytest.raises(InvalidRequest, match="is_normalized"):
        sampling_names.check({"is_normalized": True})


def test_all_names_pass() -> None:
    assert sampling_names.check(dict.fromkeys(sampling_names.NAMES)).keys() == sampling_names.NAMES
    assert sampling_names.check(None) == {}


@pytest.mark.parametrize("params", ["greedy", 4, [("n", 1)]])
def test_what_is_no_dictionary_is_refused(params: object) -> None:
    with pytest.raises(InvalidRequest, match="wanted a dictionary"):
        sampling_names.check(params)
