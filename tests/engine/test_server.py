"""The server as its users meet it: real engines, real HTTP, official clients."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import openai
import pytest

from pd_eagle import demo
from tests.engine.serving import ServerProcess

if TYPE_CHECKING:
    from pathlib import Path

PARIS = {
    "messages": [{"role": "user", "content": "What is the capital of France? Answer briefly."}],
    "temperature": 0,
}


def assert_paris(server: ServerProcess) -> None:
    status, answer = server.post("/v1/chat/completions", PARIS)
    assert status == 200
    choice = answer["choices"][0]
    assert "Paris" in choice["message"]["content"]
    assert choice["finish_reason"] == "stop"
    usage = answer["usage"]
    assert usage["prompt_tokens"] == 40
    assert usage["completion_tokens"] == 8
    assert usage["total_tokens"] == 48


def assert_health(server: ServerProcess, transfer: str) -> None:
    status, health = server.get("/health")
    assert status == 200
    assert health["status"] == "ready"
    assert health["pd_mode"] is True
    assert isinstance(health["pd_bootstrap_port"], int)
    assert [worker["role"] for worker in health["workers"]] == ["prefill", "decode"]
    assert [worker["state"] for worker in health["workers"]] == ["ready", "ready"]
    assert health["transfer_backend"] == transfer
    assert health["model"] == demo.NAME
    assert "embedded" in health["model_note"]
    assert health["plan"]["mode"] == "pd"
    assert "embedded" in health["plan"]["reason"]


def test_chat_over_nixl(server: ServerProcess) -> None:
    assert_paris(server)
    assert_health(server, "nixl")


def assert_acceptance(server: ServerProcess) -> None:
    """A request learns of its own acceptance, where SGLang's API has it."""
    body = PARIS | {"return_spec_tokens_details": True}
    details = server.post("/v1/chat/completions", body)[1]["sglext"]["spec_tokens_details"]
    verified, accepted = details["spec_verify_ct"], details["spec_num_correct_drafts"]
    # The prefill engine makes the first of the 8 tokens; a step adds one to what it accepts.
    assert 0 < verified < 7
    assert accepted >= 7 - verified
    assert details["spec_accept_length"] == pytest.approx(8 / verified)
    # The worker's comes with its next heartbeat; until then it is the probe's, 1 or none.
    server.wait_until(lambda: more_than_one(server.worker("decode-0")), "told of its acceptance")


def more_than_one(worker: dict[str, Any]) -> float | None:
    length = worker["spec_accept_length"]
    return length if length and length > 1 else None


def test_chat_with_eagle_over_mooncake(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    settings = {"DISAGG_TRANSFER_BACKEND": "mooncake", "SPECULATIVE_ALGORITHM": "EAGLE"}
    with ServerProcess(log, **settings) as server:
        assert_paris(server)
        assert_health(server, "mooncake")
        assert_acceptance(server)
    assert server.process.returncode == 0, log.read_text()[-3000:]


def test_official_client(server: ServerProcess) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == [demo.NAME]
    arguments: dict[str, Any] = {**PARIS, "model": demo.NAME}
    whole = client.chat.completions.create(**arguments)
    text = whole.choices[0].message.content
    chunks = list(
        client.chat.completions.create(
            **arguments, stream=True, stream_options={"include_usage": True}
        )
    )
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert streamed == text
    assert "Paris" in streamed
    assert len(chunks) > 5
    assert chunks[-1].usage == whole.usage
    completion = client.completions.create(
        model=demo.NAME, prompt="The capital of France is", max_tokens=4, temperature=0
    )
    assert "Paris" in completion.choices[0].text


def test_several_choices_and_logprobs(server: ServerProcess) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    completion = client.completions.create(
        model=demo.NAME,
        prompt=["The capital of France is", "The capital of Italy is"],
        max_tokens=3,
        temperature=0,
        logprobs=2,
        echo=True,
        n=2,
    )
    assert [choice.index for choice in completion.choices] == [0, 1, 2, 3]
    paris, paris_again, rome, rome_again = (choice.text for choice in completion.choices)
    assert paris == paris_again
    assert rome == rome_again
    assert "Paris" in paris
    assert "Rome" in rome
    logprobs = completion.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert "".join(logprobs.tokens) == paris
    assert logprobs.token_logprobs is not None
    # The prompt's first token has no predecessor; all others were judged by the prefill engine.
    assert logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:] if value is not None)
    assert len(logprobs.token_logprobs) == 5 + 3


def test_json_schema(server: ServerProcess) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "sunny": {"type": "boolean"}},
        "required": ["city", "sunny"],
        "additionalProperties": False,
    }
    body = PARIS | {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema},
        },
        "max_tokens": 64,
    }
    status, answer = server.post("/v1/chat/completions", body)
    assert status == 200
    parsed = json.loads(answer["choices"][0]["message"]["content"])
    assert set(parsed) == {"city", "sunny"}
    assert isinstance(parsed["city"], str)
    assert isinstance(parsed["sunny"], bool)


def test_sglang_bench_serving(server: ServerProcess, tmp_path: Path) -> None:
    result = tmp_path / "result.jsonl"
    command = [
        *(sys.executable, "-m", "sglang.bench_serving", "--backend", "sglang-oai-chat"),
        *("--base-url", server.url, "--model", demo.NAME, "--tokenizer", str(demo.model_dir())),
        *("--dataset-name", "random-ids", "--random-input-len", "32", "--random-output-len", "8"),
        *("--num-prompts", "8", "--output-file", str(result)),
    ]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=800)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-3000:]
    measured = json.loads(result.read_text().splitlines()[-1])
    assert measured["completed"] == 8
    assert measured["total_output_tokens"] > 8


HI = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"
BAD = [
    ("POST", CHAT, b"{", 400, "not JSON"),
    ("POST", CHAT, b"", 400, "empty"),
    ("POST", CHAT, b"[]", 400, "wanted a JSON object"),
    ("POST", CHAT, b"\xff\xfe", 400, "not JSON"),
    ("POST", CHAT, {}, 400, "messages: Field required"),
    ("POST", CHAT, {"messages": []}, 400, "empty"),
    ("POST", CHAT, {"messages": "hi"}, 400, "messages='hi'"),
    ("POST", CHAT, {"messages": [{"role": "clown", "content": "hi"}]}, 400, "clown"),
    ("POST", CHAT, {"messages": HI, "temperature": "hot"}, 400, "temperature='hot'"),
    ("POST", CHAT, {"messages": HI, "temperature": -1}, 400, "temperature"),
    ("POST", CHAT, {"messages": HI, "top_p": 2, "stream": True}, 400, "top_p"),
    ("POST", CHAT, {"messages": HI, "model": "gpt-4"}, 404, "gpt-4"),
    ("POST", CHAT, {"messages": HI, "max_tokens": 0}, 400, "max_tokens=0"),
    ("POST", CHAT, {"messages": HI, "max_tokens": -5}, 400, "max_tokens=-5"),
    ("POST", CHAT, {"messages": HI, "max_tokens": 10**9}, 400, "8192"),
    ("POST", CHAT, {"messages": HI, "n": 0}, 400, "n"),
    ("POST", CHAT, {"messages": [{"role": "user", "content": "a " * 9000}]}, 400, "8192"),
    (
        "POST",
        CHAT,
        {"messages": [{"role": "user", "content": "a " * 9000}], "stream": True},
        400,
        "8192",
    ),
    ("POST", CHAT, b'{"messages": "' + b"a" * 20_000_000 + b'"}', 413, "16777216"),
    ("POST", "/v1/completions", {}, 400, "prompt"),
    ("POST", "/v1/completions", {"prompt": ""}, 400, "empty"),
    ("POST", "/v1/completions", {"prompt": [49152]}, 400, "49152"),
    ("POST", "/v1/completions", {"prompt": [-1]}, 400, "-1"),
    ("POST", "/v1/completions", {"prompt": "a", "max_tokens": 0}, 400, "max_tokens=0"),
    ("GET", CHAT, None, 405, "Method Not Allowed"),
    ("POST", "/health", b"", 405, "Method Not Allowed"),
    ("GET", "/nowhere", None, 404, "Not Found"),
    ("GET", "/v1/models/gpt-4", None, 404, "gpt-4"),
]


def shown(value: object) -> str | None:
    return f"{value!r:.60}" if isinstance(value, bytes | dict) else None


@pytest.mark.parametrize(("method", "path", "body", "status", "says"), BAD, ids=shown)
def test_bad_input(
    server: ServerProcess, method: str, path: str, body: object, status: int, says: str
) -> None:
    raw = json.dumps(body).encode() if isinstance(body, dict) else body
    assert raw is None or isinstance(raw, bytes)
    found, answer = server.request(method, path, raw)
    assert found == status
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert says in answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error"


def test_after_bad_input(server: ServerProcess) -> None:
    assert_paris(server)
    health = server.get("/health")[1]
    assert health["inflight"] == 0
    assert [worker["inflight"] for worker in health["workers"]] == [0, 0]
    log = server.log.read_text()
    assert "Traceback" not in log
    assert " ERROR " not in log
