"""Agents with tools over PD and EAGLE, and official clients, unmodified, on real engines.

A decode engine is killed in the middle of an answer: an agent does not see it.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any, Literal

import openai
import pydantic
import pytest

from tests.engine.agent_loops import SCHEMA, Told, messages_agent, responses_agent
from tests.engine.qwen_like import qwen_like_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.engine.serving import ServerProcess

SETTINGS = {"DECODE_REPLICAS": "2", "ENGINE_ARGS": '{"enable_cache_report": true}'}
AGENTS = [messages_agent, responses_agent]
TOOL: Any = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
RESPONSES_TOOL: Any = {"type": "function", "name": "get_weather", "parameters": SCHEMA}
ASKED: Any = [{"role": "user", "content": "What is the weather in Paris?"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("agents")
    with qwen_like_server(folder, **SETTINGS) as running:
        yield running


def restarts(server: ServerProcess) -> int:
    return sum(worker["restarts"] for worker in server.get("/health")[1]["workers"])


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.__name__)
def test_an_agent_does_not_see_a_decode_engine_die(
    server: ServerProcess, agent: Callable[[ServerProcess, Callable[[], None]], Told]
) -> None:
    undisturbed = agent(server, lambda: None)
    before, killed = restarts(server), []

    def kill() -> None:
        workers = server.get("/health")[1]["workers"]
        serving = [w for w in workers if w["role"] == "decode" and w["inflight"]]
        assert serving, "the answer has ended"
        killed.append(serving[0]["name"])
        os.kill(serving[0]["pid"], signal.SIGKILL)

    told = agent(server, kill)
    assert told == undisturbed
    assert told.call["name"] == "get_weather"
    assert told.call["arguments"]["city"] in ("Paris", "Rome")
    assert len(told.text) > 40
    assert len(told.ends) == 2
    assert killed
    server.wait_until(lambda: restarts(server) == before + 1 or None, "restarted", 200)
    server.wait_until(lambda: server.get("/health")[1]["status"] == "ready" or None, "ready", 200)


# --- every way to call a tool, over PD and EAGLE


def by_openai(server: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)


NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}
STRICT: Any = {"type": "function", "function": TOOL["function"] | {"strict": True}}


def test_a_tool_by_name_streamed(server: ServerProcess) -> None:
    chunks = by_openai(server).chat.completions.create(
        model="qwen-like",
        messages=ASKED,
        tools=[STRICT],
        tool_choice=NAMED,
        temperature=0,
        max_tokens=60,
        stream=True,
        n=2,
    )
    found: list[Any] = list(chunks)
    assert len({chunk.id for chunk in found}) == 1
    for index in (0, 1):
        deltas = [c.choices[0].delta for c in found if c.choices and c.choices[0].index == index]
        calls = [call for delta in deltas for call in delta.tool_calls or []]
        assert calls[0].function is not None
        assert calls[0].function.name == "get_weather"
        assert "city" in "".join(c.function.arguments or "" for c in calls if c.function)


def test_the_prompts_tokens_come_with_the_answers(server: ServerProcess) -> None:
    body = {"prompt": "The capital of", "max_tokens": 3, "return_token_ids": True}
    choice = server.post("/v1/completions", body)[1]["choices"][0]
    assert len(choice["prompt_token_ids"]) == 3
    assert len(choice["token_ids"]) == 3


# --- official clients, unmodified


class Weather(pydantic.BaseModel):
    city: Literal["Paris", "Rome"]


def test_openais_client_parses(server: ServerProcess) -> None:
    client = by_openai(server)
    chat = client.chat.completions.parse(
        model="qwen-like", messages=ASKED, response_format=Weather, temperature=0, max_tokens=60
    )
    assert isinstance(chat.choices[0].message.parsed, Weather)
    response = client.responses.parse(
        model="qwen-like",
        input="What is the weather in Paris?",
        text_format=Weather,
        temperature=0,
        max_output_tokens=60,
    )
    assert isinstance(response.output_parsed, Weather)


async def test_anthropics_client(server: ServerProcess) -> None:
    anthropic = pytest.importorskip("anthropic", reason="pip install anthropic")
    client = anthropic.Anthropic(base_url=server.url, api_key="x", max_retries=0)
    asked = {"model": "qwen-like", "max_tokens": 12, "messages": ASKED}
    asked |= {"extra_body": {"temperature": 0}}  # newer models of Anthropic's do not take it
    whole = client.messages.create(**asked)
    assert whole.stop_reason in ("end_turn", "max_tokens")
    with client.messages.stream(**asked) as stream:
        assert stream.get_final_text() == whole.content[0].text
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key="x") as asynchronous:
        counted = await asynchronous.messages.count_tokens(model="qwen-like", messages=ASKED)
    usage = whole.usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    tool = {"name": "get_weather", "input_schema": SCHEMA, "strict": True}
    called = client.messages.create(
        **asked | {"max_tokens": 60}, tools=[tool], tool_choice={"type": "tool", **NAME_ONLY}
    )
    assert called.stop_reason == "tool_use"
    assert called.content[0].input["city"] in ("Paris", "Rome")
    with pytest.raises(anthropic.NotFoundError, match="not served here"):
        client.messages.create(**asked | {"model": "another"})
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(**asked | {"max_tokens": 0})


NAME_ONLY = {"name": "get_weather"}


def test_a_changing_preamble_leaves_the_cache_alone(server: ServerProcess) -> None:
    long = " ".join(f"Rule {number}: be kind." for number in range(60))

    def cached(number: int) -> int:
        header = f"x-anthropic-billing-header: cc_version=1; cch={number:05x};"
        blocks = [{"type": "text", "text": header}, {"type": "text", "text": long}]
        body = {"model": "default", "max_tokens": 2, "system": blocks, "messages": ASKED}
        usage = server.post("/v1/messages", body)[1]["usage"]
        return int(usage.get("cache_read_input_tokens", 0))

    cached(1)
    assert cached(2) > 300
