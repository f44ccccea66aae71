"""Drafts: which one is taken, what must agree with the target, and the token map's form."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

from pd_eagle.errors import SettingsError
from pd_eagle.plan.config import Settings
from pd_eagle.plan.drafts import check_draft, check_token_map, draft_path
from pd_eagle.plan.models import load_shape

if TYPE_CHECKING:
    from pathlib import Path

TARGET = load_shape("Qwen/Qwen2.5-7B-Instruct")
DRAFT = load_shape("leptonai/EAGLE-Qwen2.5-7B-Instruct")
DRAFT3 = load_shape("thoughtworks/Qwen2.5-7B-Instruct-Eagle3")


@pytest.mark.parametrize(
    ("given", "target", "expected"),
    [
        ({}, TARGET.name, None),
        ({"speculative_draft_model_path": "d"}, TARGET.name, None),
        ({"speculative_algorithm": "EAGLE"}, TARGET.name, DRAFT.name),
        ({"speculative_algorithm": "EAGLE3"}, TARGET.name, DRAFT3.name),
        ({"speculative_algorithm": "EAGLE", "speculative_draft_model_path": "d"}, "any", "d"),
    ],
)
def test_the_draft_of_a_target(given: dict[str, Any], target: str, expected: str | None) -> None:
    assert draft_path(Settings.from_kwargs(**given), target) == expected


def test_an_unknown_draft_names_the_variable() -> None:
    with pytest.raises(SettingsError) as caught:
        draft_path(Settings.from_kwargs(speculative_algorithm="EAGLE3"), "org/m")
    assert caught.value.message == (
        "SPECULATIVE_DRAFT_MODEL_PATH is unset: wanted the draft of org/m for EAGLE3;"
        " none is known here"
    )


def test_the_known_drafts_fit() -> None:
    check_draft(TARGET, DRAFT, "EAGLE")
    check_draft(TARGET, DRAFT3, "EAGLE3")


def test_a_model_that_drafts_for_itself_fits() -> None:
    check_draft(TARGET, TARGET, "EAGLE")


def test_an_eagle3_draft_may_be_narrower_than_its_target_when_it_says_so() -> None:
    narrow = dataclasses.replace(DRAFT3, hidden_size=2048, target_hidden_size=3584)
    check_draft(TARGET, narrow, "EAGLE3")


@pytest.mark.parametrize(
    ("draft", "changes", "algorithm", "told"),
    [
        (
            DRAFT,
            {"vocab_size": 151936},
            "EAGLE",
            "its vocabulary has 151936 tokens, the target's 152064",
        ),
        (
            DRAFT,
            {"hidden_size": 4096},
            "EAGLE",
            "it reads hidden states 4096 wide, the target's are 3584",
        ),
        (
            DRAFT3,
            {"target_hidden_size": 4096},
            "EAGLE3",
            "it reads hidden states 4096 wide, the target's are 3584",
        ),
        (
            DRAFT3,
            {"draft_vocab_size": 200000},
            "EAGLE3",
            "its draft vocabulary has 200000 tokens, the target's 152064",
        ),
        (
            DRAFT,
            {"architectures": ("Qwen2ForCausalLM",)},
            "EAGLE",
            "its architecture Qwen2ForCausalLM is no draft's",
        ),
        (DRAFT, {"architectures": ()}, "EAGLE", "its architecture none is no draft's"),
        (
            DRAFT,
            {},
            "EAGLE3",
            "its architecture Qwen2ForCausalLMEagle is not one of EAGLE3",
        ),
        (
            DRAFT3,
            {},
            "EAGLE",
            "its architecture LlamaForCausalLMEagle3 is not one of EAGLE",
        ),
    ],
)
def test_a_draft_of_another_target_is_refused_with_both_numbers(
    draft: Any, changes: dict[str, Any], algorithm: str, told: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        check_draft(TARGET, dataclasses.replace(draft, **changes), algorithm)
    assert caught.value.message == (
        f"SPECULATIVE_DRAFT_MODEL_PATH={draft.name!r}: wanted a draft made for {TARGET.name}:"
        f" {told}"
    )


def test_all_that_does_not_agree_is_told_at_once() -> None:
    other = dataclasses.replace(DRAFT, vocab_size=1, hidden_size=2)
    with pytest.raises(SettingsError, match=r"has 1 tokens.*; it reads hidden states 2 wide"):
        check_draft(TARGET, other, "EAGLE")


def test_a_list_of_token_ids_is_a_token_map(tmp_path: Path) -> None:
    file = tmp_path / "ids.json"
    file.write_text(json.dumps([5, 0, 99]))
    check_token_map(str(file), 100)


def test_a_torch_file_is_a_token_map_by_its_form(tmp_path: Path) -> None:
    file = tmp_path / "ids.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    check_token_map(str(file), 100)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[1, 100]", "token 100 is outside the vocabulary of 100"),
        ("[-1]", "token -1 is outside the vocabulary of 100"),
        ("[1, 2, 1]", "1 token ids stand in it twice"),
        ("[1.5]", "1.5 is no token id"),
        ("[true]", "True is no token id"),
        ("[]", "no list, or an empty one"),
        ('{"0": 1}', "no list, or an empty one"),
        ("ids", "Expecting value"),
        ("\xff", "Expecting value"),
    ],
)
def test_what_is_no_token_map(tmp_path: Path, content: str, told: str) -> None:
    file = tmp_path / "ids.json"
    file.write_text(content)
    with pytest.raises(SettingsError) as caught:
        check_token_map(str(file), 100)
    assert caught.value.message.startswith(f"SPECULATIVE_TOKEN_MAP={str(file)!r}: {told}")
    assert caught.value.message.endswith(
        "wanted a JSON list of token ids, or SGLang's .pt file of them"
    )


def test_a_token_map_that_is_not_there() -> None:
    with pytest.raises(SettingsError, match=r"SPECULATIVE_TOKEN_MAP='no.json': no such file"):
        check_token_map("no.json", 100)
