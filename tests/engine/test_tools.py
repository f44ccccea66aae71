"""Tools and EAGLE's own rules over HTTP: the embedded model with Qwen 2.5's chat template."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from pd_eagle.plan.tool_parsers import BY_ARCHITECTURE, BY_TEMPLATE
from tests.engine.qwen_like import qwen_like_server
from tests.engine.serving import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "strict": True,  # else SGLang lets the arguments be any JSON
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
        },
    },
}
#: Seconds for one answer on a busy machine.
ANSWER_TIMEOUT_S = 400.0
NAMED = {"type": "function", "function": {"name": "get_weather"}}


pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def qwen_like(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with qwen_like_server(tmp_path_factory.mktemp("tools")) as running:
        yield running


def chat(server: ServerProcess, **fields: Any) -> tuple[int, Any]:
    body = {"messages": QUESTION, "temperature": 0, "max_tokens": 60} | fields
    return server.post("/v1/chat/completions", body, ANSWER_TIMEOUT_S)


def test_the_parser_is_taken_by_itself(qwen_like: ServerProcess) -> None:
    assert qwen_like.get("/health")[1]["tool_call_parser"] == "qwen"
    assert "parser of tool calls: qwen (the chat template has" in qwen_like.log.read_text()


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_call_that_must_come_is_a_call(qwen_like: ServerProcess, choice: object) -> None:
    status, answer = chat(qwen_like, tools=[WEATHER], tool_choice=choice)
    assert status == 200, answer
    message = answer["choices"][0]["message"]
    assert not message["content"]
    (call,) = message["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"])["city"] in ("Paris", "Rome")


def test_a_streamed_call_is_a_call(qwen_like: ServerProcess) -> None:
    body = {
        "messages": QUESTION,
        "temperature": 0,
        "max_tokens": 60,
        "tools": [WEATHER],
        "tool_choice": "required",
        "stream": True,
    }
    request = urllib.request.Request(
        f"{qwen_like.url}/v1/chat/completions", json.dumps(body).encode()
    )
    with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_S) as response:
        lines = [line.removeprefix(b"data: ") for line in response if line.strip()]
    deltas = [json.loads(line)["choices"][0]["delta"] for line in lines[:-1] if b"choices" in line]
    # SGLang's grammar lets a model say something after its calls.
    content = "".join(delta.get("content") or "" for delta in deltas)
    assert "tool_call" not in content
    assert "get_weather" not in content
    calls = [call["function"] for delta in deltas for call in delta.get("tool_calls") or []]
    assert "".join(call.get("name") or "" for call in calls) == "get_weather"
    arguments = json.loads("".join(call.get("arguments") or "" for call in calls))
    assert arguments["city"] in ("Paris", "Rome")


def test_a_call_that_may_come_is_never_raw_text(qwen_like: ServerProcess) -> None:
    status, answer = chat(qwen_like, tools=[WEATHER], max_tokens=24)
    assert status == 200, answer
    assert "<tool_call>" not in (answer["choices"][0]["message"]["content"] or "")


def test_min_p_is_refused_with_the_reason(qwen_like: ServerProcess) -> None:
    assert chat(qwen_like)[0] == 200  # the model's own is left out
    assert "min_p=0.05 of the model's generation_config.json" in qwen_like.log.read_text()
    for path, prompt in (
        ("/v1/chat/completions", {"messages": QUESTION}),
        ("/v1/completions", {"prompt": "a"}),
    ):
        status, answer = qwen_like.post(path, prompt | {"min_p": 0.1, "max_tokens": 4})
        assert status == 400
        assert "min_p: wanted unset" in answer["error"]["message"]
        assert "SPECULATIVE_ALGORITHM" in answer["error"]["message"]


def test_a_relaxed_penalty_is_said_once(qwen_like: ServerProcess) -> None:
    for _ in range(2):
        assert chat(qwen_like, frequency_penalty=0.5, max_tokens=4)[0] == 200
    assert qwen_like.log.read_text().count("frequency_penalty is relaxed") == 1


@pytest.mark.parametrize("choice", ["required", NAMED, "auto", None])
def test_tools_that_nobody_would_read_are_refused(server: ServerProcess, choice: object) -> None:
    """The embedded model's template does not speak of tools."""
    asked = {"tools": [WEATHER]} | ({"tool_choice": choice} if choice else {})
    status, answer = chat(server, **asked)
    assert status == 400
    assert "TOOL_CALL_PARSER" in answer["error"]["message"]
    assert "does not speak of tools" in answer["error"]["message"]
    assert server.get("/health")[1]["tool_call_parser"] is None


def test_tools_that_must_not_be_used_pass(server: ServerProcess) -> None:
    assert chat(server, tools=[WEATHER], tool_choice="none", max_tokens=4)[0] == 200


NAMES = """
from sglang.srt.function_call.function_call_parser import FunctionCallParser
print(*FunctionCallParser.ToolCallParserEnum)
"""


def test_the_names_of_parsers_are_sglangs() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", NAMES],
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    ours = {name for name, _ in BY_TEMPLATE} | set(BY_ARCHITECTURE.values())
    assert ours <= set(run.stdout.splitlines()[-1].split())


def test_an_unknown_parser_ends_the_start(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="TOOL_CALL_PARSER='qwen99': wanted auto or one of"),
        ServerProcess(tmp_path / "server.log", TOOL_CALL_PARSER="qwen99"),
    ):
        pass
