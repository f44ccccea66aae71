"""What identifies an answer of a call: one id for all samples, and the prompt's own tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from pd_eagle.requests.generate_api import GenerateApi
from tests.scripted import ids_of
from tests.unit.generate_input import GenerateInput
from tests.unit.test_generate_api import Letters, all_of

if TYPE_CHECKING:
    from pd_eagle.requests.service import Service


async def ask(*, one_id: bool, incremental: bool = True, **fields: Any) -> list[Any]:
    service = Letters()
    api = GenerateApi(
        cast("Service", service), service.tokenize, incremental=incremental, one_id=one_id
    )
    found = await all_of(api.generate_request(GenerateInput(**fields)))
    assert len({request.rid for request in service.requests}) == len(service.requests)
    return found if fields.get("stream") else found[0]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fields", [{"text": "ab", "sampling_params": {"n": 3}}, {"text": ["ab", "cd", "ef"]}]
)
async def test_all_answers_of_a_call_have_one_id(stream: bool, fields: dict[str, Any]) -> None:
    for one_id, ids in ((True, 1), (False, 3)):
        results = await ask(one_id=one_id, stream=stream, **fields)
        assert len({result["meta_info"]["id"] for result in results}) == ids


async def test_the_id_is_the_one_given() -> None:
    for result in await ask(one_id=True, text="ab", rid="mine", stream=True):
        assert result["meta_info"]["id"] == "mine"


@pytest.mark.parametrize("stream", [False, True])
async def test_the_prompts_tokens_come_where_they_are_wanted(stream: bool) -> None:
    wanted: dict[str, Any] = {
        "text": ["ab", "cd"],
        "return_prompt_token_ids": True,
        "stream": stream,
    }
    for result in await ask(one_id=True, **wanted):
        assert result["prompt_token_ids"] in (ids_of("ab"), ids_of("cd"))
    for result in await ask(one_id=True, **wanted | {"return_prompt_token_ids": False}):
        assert "prompt_token_ids" not in result
