# ruff: noqa: T201 - the pause and the time to heal are printed, never asserted
"""Engines killed under load: every client gets the complete, correct text, and the plan heals.

In float32, where a token does not depend on who shares the batch.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import openai
import pytest

from pd_eagle import demo
from tests.engine.serving import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STREAMS = 8
NEW_TOKENS = 48
PROMPTS = [f"Write {i + 3} sentences about the number {i}." for i in range(STREAMS)]


@dataclass
class Answer:
    """What one client got; `pause_s` is the longest time between two of its chunks."""

    text: str = ""
    completion_tokens: int = 0
    finish_reason: str | None = None
    pause_s: float = 0.0


async def ask(client: openai.AsyncOpenAI, prompt: str, on_chunk: Callable[[], None]) -> Answer:
    answer, last = Answer(), time.monotonic()
    stream = await client.chat.completions.create(
        model=demo.NAME,
        messages=[{"role": "user", "content": prompt}],
        max_tokens=NEW_TOKENS,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    async for chunk in stream:
        answer.pause_s = max(answer.pause_s, time.monotonic() - last)
        last = time.monotonic()
        on_chunk()
        if chunk.usage:
            answer.completion_tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            answer.text += choice.delta.content or ""
            answer.finish_reason = choice.finish_reason or answer.finish_reason
    return answer


async def ask_all(server: ServerProcess, strike: Callable[[], None] | None = None) -> list[Answer]:
    """Ask all prompts at once; `strike` when a third of the chunks have come."""
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
    chunks = 0
    struck = asyncio.Event()

    def count() -> None:
        nonlocal chunks
        chunks += 1
        if chunks == STREAMS * NEW_TOKENS // 3:
            struck.set()

    asking = [asyncio.create_task(ask(client, prompt, count)) for prompt in PROMPTS]
    await asyncio.wait_for(struck.wait(), 120)
    if strike is not None:
        await asyncio.to_thread(strike)
    return await asyncio.gather(*asking)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    settings = {
        "DECODE_REPLICAS": "2",
        "ENGINE_ARGS": '{"dtype": "float32"}',
        "HANG_TIMEOUT_S": "20",
    }
    with ServerProcess(tmp_path_factory.mktemp("resume") / "server.log", **settings) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(server: ServerProcess) -> list[Answer]:
    answers = asyncio.run(ask_all(server))
    assert all(answer.completion_tokens == NEW_TOKENS for answer in answers)
    return answers


def kill_decode_scheduler(server: ServerProcess) -> str:
    os.kill(server.worker("decode-0")["scheduler_pids"][0], signal.SIGKILL)
    return "decode-0"


def kill_decode_host(server: ServerProcess) -> str:
    os.kill(server.worker("decode-1")["pid"], signal.SIGKILL)
    return "decode-1"


def kill_prefill_host(server: ServerProcess) -> str:
    os.kill(server.worker("prefill-0")["pid"], signal.SIGKILL)
    return "prefill-0"


def hang_decode_scheduler(server: ServerProcess) -> str:
    os.kill(server.worker("decode-0")["scheduler_pids"][0], signal.SIGSTOP)
    return "decode-0"


STRIKES = [kill_decode_scheduler, kill_decode_host, kill_prefill_host, hang_decode_scheduler]


@pytest.mark.parametrize("strike", STRIKES, ids=lambda strike: strike.__name__)
def test_nobody_notices(
    server: ServerProcess,
    undisturbed: list[Answer],
    strike: Callable[[ServerProcess], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    restarts = {w["name"]: w["restarts"] for w in server.get("/health")[1]["workers"]}
    struck_at, victim = 0.0, ""

    def now() -> None:
        nonlocal struck_at, victim
        struck_at, victim = time.monotonic(), strike(server)

    answers = asyncio.run(ask_all(server, now))
    assert [answer.text for answer in answers] == [answer.text for answer in undisturbed]
    assert {answer.completion_tokens for answer in answers} == {NEW_TOKENS}
    assert {answer.finish_reason for answer in answers} == {"length"}

    def whole() -> float | None:
        health = server.get("/health")[1]
        restarted = server.worker(victim)["restarts"] == restarts[victim] + 1
        ready = health["status"] == "ready" and restarted
        return time.monotonic() if ready else None

    healed_s = server.wait_until(whole, "whole again", 120) - struck_at
    assert server.get("/health")[1]["inflight"] == 0
    with capsys.disabled():
        longest = max(answer.pause_s for answer in answers)
        print(f"\n{strike.__name__}: longest pause {longest:.1f} s, whole after {healed_s:.1f} s")
