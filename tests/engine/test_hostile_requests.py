"""What killed or stalled an engine, or was a 500, is a 400 now, and all engines live."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.test_server import assert_paris

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.serving import ServerProcess

VOCABULARY = 49_152
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
TEXT: dict[str, Any] = {"prompt": "hello", "max_tokens": 4}
DEEP = '{"type":"array","items":' * 200 + "{}" + "}" * 200


def schema(given: Any) -> dict[str, Any]:
    """Return the body of a chat whose answer must be of this schema."""
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": given}}
    return CHAT | {"response_format": wanted}


REFUSED: dict[str, dict[str, Any]] = {
    "a seed of 26 digits": CHAT | {"seed": "9" * 26},
    "a seed of 26 digits, no text": CHAT | {"seed": 10**26},
    "tokens of 26 digits": CHAT | {"stop_token_ids": ["9" * 26]},
    "a priority of 26 digits": CHAT | {"priority": "9" * 26},
    "top_logprobs": CHAT | {"logprobs": True, "top_logprobs": 129},
    "logprobs": TEXT | {"logprobs": 129},
    "logprobs beyond the vocabulary": TEXT | {"logprobs": VOCABULARY + 1},
    "stop tokens": CHAT | {"stop_token_ids": [VOCABULARY], "min_tokens": 2},
    "stop tokens below": CHAT | {"stop_token_ids": [-1], "min_tokens": 2},
    "a bias": CHAT | {"logit_bias": {str(VOCABULARY): 1}},
    "an endless bias": CHAT | {"logit_bias": {"1": "1e400"}},
    "prompts": TEXT | {"prompt": ["a"] * 200_000},
    "answers": TEXT | {"n": 100_000},
    "answers with a large field": TEXT | {"n": 40, "custom_params": {"x": "y" * 8 * 2**20}},
    "a star": CHAT | {"stop_regex": "(a+)+$"},
    "an open bracket": CHAT | {"stop_regex": "["},
    "a stop of 15 MB": CHAT | {"stop": "x" * 15_000_000},
    "an empty stop": CHAT | {"stop": ""},
    "an empty stop, streamed": CHAT | {"stop": "", "stream": True},
    # Sampled, not greedy: a multinomial over NaN was the end of the engine.
    "a grammar without any token": TEXT | {"ebnf": "root ::= root", "temperature": 1},
    "a deep schema": TEXT | {"json_schema": DEEP},
    "a format that is a word": CHAT | {"response_format": "json"},
    "a format of another kind": CHAT | {"response_format": {"type": "xml"}},
    "a schema of itself": schema({"$ref": "#"}),
    "a schema of itself by name": schema(
        {"$defs": {"x": {"$ref": "#/$defs/x"}}, "$ref": "#/$defs/x"}
    ),
    "the template's tools": CHAT | {"chat_template_kwargs": {"tools": []}},
    "the template's messages": CHAT | {"chat_template_kwargs": {"messages": []}},
    "the template's prompt": CHAT | {"chat_template_kwargs": {"add_generation_prompt": False}},
    "two ids for one": CHAT | {"rid": ["a", "b"]},
    "two ids for one prompt": TEXT | {"rid": ["a", "b"]},
    "a long time": CHAT | {"timeout": 86_400},
    "80,000 properties": CHAT
    | {
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "f",
                    "parameters": {"properties": {f"p{i}": {} for i in range(80_000)}},
                },
            }
        ]
    },
}


@pytest.fixture(scope="module", autouse=True)
def nothing_dies(server: ServerProcess) -> Iterator[None]:
    def restarts() -> list[int]:
        return [worker["restarts"] for worker in server.get("/health")[1]["workers"]]

    before = restarts()
    yield
    assert restarts() == before
    assert server.get("/health")[1]["status"] == "ready"
    assert_paris(server)


def post(server: ServerProcess, body: dict[str, Any]) -> tuple[int, Any]:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    return server.post(path, body)


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED)
def test_what_no_engine_could_take_is_a_400(server: ServerProcess, body: dict[str, Any]) -> None:
    status, answer = post(server, body)
    assert status == 400, answer
    assert answer["error"]["type"] == "invalid_request_error"
    assert len(answer["error"]["message"]) < 600
