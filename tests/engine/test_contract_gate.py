"""The gate's tables against SGLang's own lists of fields: one that nobody thought of fails here."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from transformers import PreTrainedTokenizerFast

from pd_eagle.http import agent_bodies, bodies
from pd_eagle.http.unknown_fields import ON_PURPOSE
from pd_eagle.messages import Options
from pd_eagle.requests import gate
from pd_eagle.requests.bounds import Unset, Unused

if TYPE_CHECKING:
    from pd_eagle.http.answers import Endpoint

FIELDS = """
import dataclasses, json
from sglang.srt.entrypoints.anthropic.protocol import (
    AnthropicCountTokensRequest,
    AnthropicMessagesRequest,
)
from sglang.srt.entrypoints.openai.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    ResponsesRequest,
)
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.sampling.sampling_params import SamplingParams
print(json.dumps({
    "generate": [field.name for field in dataclasses.fields(GenerateReqInput)],
    "sampling": list(SamplingParams.__struct_fields__),
    "chat": list(ChatCompletionRequest.model_fields),
    "completion": list(CompletionRequest.model_fields),
    "messages": list(AnthropicMessagesRequest.model_fields),
    "count_tokens": list(AnthropicCountTokensRequest.model_fields),
    "responses": list(ResponsesRequest.model_fields),
}))
"""


@pytest.fixture(scope="module")
def fields() -> dict[str, set[str]]:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FIELDS],
        capture_output=True,
        text=True,
        check=True,
        timeout=400,
    )
    return {name: set(found) for name, found in json.loads(run.stdout.splitlines()[-1]).items()}


def test_every_sampling_parameter_has_a_bound(fields: dict[str, set[str]]) -> None:
    assert set(gate.SAMPLING) == fields["sampling"]


def test_every_field_of_generate_has_a_bound(fields: dict[str, set[str]]) -> None:
    assert set(gate.OPTIONS) == fields["generate"]


def test_every_field_of_a_body_has_a_bound(fields: dict[str, set[str]]) -> None:
    # A validator of SGLang's reads it, though it is no field.
    assert set(bodies.BODY) == fields["chat"] | fields["completion"] | {"reasoning"}


def test_every_field_of_the_agents_apis_has_a_bound(fields: dict[str, set[str]]) -> None:
    assert set(agent_bodies.MESSAGES) == fields["messages"] | fields["count_tokens"]
    assert set(agent_bodies.RESPONSES) == fields["responses"]


@pytest.mark.parametrize("endpoint", ON_PURPOSE)
def test_what_is_ignored_on_purpose_is_no_field_of_sglangs(
    fields: dict[str, set[str]], endpoint: Endpoint
) -> None:
    assert not ON_PURPOSE[endpoint].keys() & fields[endpoint], "take it out of ON_PURPOSE"


def test_what_is_carried_to_an_engine_is_neither_refused_nor_unused() -> None:
    for name in Options.__struct_fields__:
        assert not isinstance(gate.OPTIONS[name], Unset | Unused), name


def test_no_argument_of_a_template_can_be_given_twice() -> None:
    named = inspect.signature(PreTrainedTokenizerFast.apply_chat_template).parameters
    assert set(named) - {"documents"} <= bodies._TEMPLATE_ARGUMENTS
