"""What `poison` and `soak` share: streams of real engines whose whole text is known beforehand.

Knows nothing of what is done to the engines meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from benchmarks.asking import CHAT, chat_body

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.engine.serving import ServerProcess

#: Engine arguments with which a token does not depend on the other requests of its batch.
FLOAT32 = '{"dtype": "float32"}'
PROMPTS = [f"Write {i + 3} sentences about the number {i}." for i in range(16)]
RECOVERY_TIMEOUT_S = 120


class StreamFailed(Exception):
    """A stream that ended in an error event."""

    def __init__(self, status: int, error: dict[str, Any]) -> None:
        super().__init__(f"{status} {error}")
        self.code = error.get("code")
        self.status = status


async def streamed(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[str, float]:
    """Return the text of a streamed chat and the longest pause in it, in seconds."""
    text, last, pause_s = "", time.monotonic(), 0.0
    async with client.stream("POST", CHAT, json=body) as response:
        if response.status_code != 200:
            raise StreamFailed(response.status_code, json.loads(await response.aread())["error"])
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise StreamFailed(200, event["error"])
            pause_s = max(pause_s, time.monotonic() - last)
            last = time.monotonic()
            text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
    return text, pause_s


@dataclass(frozen=True)
class ExactStreams:
    """Asks for `tokens` tokens to each of `PROMPTS`; `expected` has the undisturbed texts."""

    client: httpx.AsyncClient
    tokens: int
    expected: dict[str, str]

    async def ask(self, prompt: str) -> tuple[dict[str, str] | None, float]:
        """Return how the text differs (None if it is exact), and its longest pause in seconds."""
        text, pause_s = await streamed(self.client, chat_body(prompt, self.tokens))
        right = self.expected[prompt]
        return None if text == right else {"prompt": prompt, "text": text, "right": right}, pause_s


@asynccontextmanager
async def exact_streams(
    server: ServerProcess, tokens: int, timeout_s: float
) -> AsyncIterator[ExactStreams]:
    """Ask for all texts once, at the same time, before anything is done to the engines."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=timeout_s, limits=limits) as client:
        bodies = [chat_body(prompt, tokens) for prompt in PROMPTS]
        answers = await asyncio.gather(*(streamed(client, body) for body in bodies))
        texts = (text for text, _ in answers)
        yield ExactStreams(client, tokens, dict(zip(PROMPTS, texts, strict=True)))


async def recovered(server: ServerProcess) -> dict[str, Any]:
    """Wait until the whole plan serves and nothing runs; return that, and all restarts so far."""

    def whole() -> bool | None:
        health = server.get("/health")[1]
        return bool(health and health["status"] == "ready" and health["inflight"] == 0) or None

    at_the_end = await asyncio.to_thread(
        server.wait_until, whole, "whole again", RECOVERY_TIMEOUT_S
    )
    workers = server.get("/health")[1]["workers"]
    return {
        "whole_at_the_end": at_the_end,
        "restarts": {worker["name"]: worker["restarts"] for worker in workers},
    }
