"""A request that crashes real engines ends alone, with their words; the others get whole answers.

Over NIXL, Mooncake and with EAGLE, by a hook that makes a scheduler crash at a mark in a prompt.
In float32, where a token does not depend on who shares the batch.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import httpx
import pytest

from benchmarks.asking import CHAT, chat_body
from benchmarks.crash_mark import CrashingServer, mark
from benchmarks.exact_streams import FLOAT32, streamed

if TYPE_CHECKING:
    from collections.abc import Iterator

STREAMS, NEW_TOKENS = 4, 24
PROMPTS = [f"Write {i + 3} sentences about the number {i}." for i in range(STREAMS)]
SETTINGS = {
    "nixl": {"DISAGG_TRANSFER_BACKEND": "nixl"},
    "mooncake": {"DISAGG_TRANSFER_BACKEND": "mooncake"},
    "eagle": {"DISAGG_TRANSFER_BACKEND": "nixl", "SPECULATIVE_ALGORITHM": "EAGLE"},
}
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module", params=SETTINGS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CrashingServer]:
    settings = SETTINGS[request.param] | {"ENGINE_ARGS": FLOAT32, "CPU_THREADS": "1"}
    log = tmp_path_factory.mktemp("server") / "server.log"
    with CrashingServer(log, **settings) as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(server: CrashingServer) -> list[str]:
    async def ask() -> list[str]:
        async with httpx.AsyncClient(base_url=server.url, timeout=None) as client:
            return await asyncio.gather(*(honest(client, prompt) for prompt in PROMPTS))

    return asyncio.run(ask())


async def honest(client: httpx.AsyncClient, prompt: str) -> str:
    return (await streamed(client, chat_body(prompt, NEW_TOKENS)))[0]


async def beside_honest_streams(
    server: CrashingServer, *poisons: str
) -> tuple[list[str], list[httpx.Response]]:
    async with httpx.AsyncClient(base_url=server.url, timeout=None) as client:
        streams = [asyncio.create_task(honest(client, prompt)) for prompt in PROMPTS]
        await asyncio.sleep(0.5)
        bodies = [chat_body(poison, 16, stream=False) for poison in poisons]
        ends = await asyncio.gather(*(client.post(CHAT, json=body) for body in bodies))
        return await asyncio.gather(*streams), ends


def deaths(server: CrashingServer) -> int:
    return sum(
        "pd_eagle.workers.supervisor" in line and " failed: " in line for line in _log(server)
    )


def _log(server: CrashingServer) -> list[str]:
    return server.log.read_text().splitlines()


@pytest.mark.parametrize(
    ("role", "way", "after", "words"),
    [
        ("prefill", "exception", 0, "IndexError: a mark in the prompt"),
        ("decode", "exception", 2, "IndexError: a mark in the prompt"),
        ("decode", "segv", 0, "Segmentation fault|SIGSEGV"),
        ("prefill", "exit", 0, "exited with code 1"),
    ],
)
def test_poison_ends_alone_with_the_engines_words(
    server: CrashingServer,
    undisturbed: list[str],
    role: str,
    way: str,
    after: int,
    words: str,
) -> None:
    before = deaths(server)
    poison = f"Say this: {mark(role, way, after)}"
    texts, (end,) = asyncio.run(beside_honest_streams(server, poison))
    assert texts == undisturbed
    assert end.status_code == 500
    error = end.json()["error"]
    assert error["code"] == "engine_crashed"
    assert re.search(words, error["message"]), error
    # One is enough where the words are those of a culprit that was convicted a moment ago.
    assert 1 <= deaths(server) - before <= 4
    assert not any("given up" in line for line in _log(server))
    again = server.post(CHAT, chat_body(poison, 16, stream=False))
    assert again[0] == 500
    assert "a short time ago" in again[1]["error"]["message"]


def test_a_number_that_no_engine_can_take_fails_its_own_request(
    server: CrashingServer, undisturbed: list[str]
) -> None:
    before = deaths(server)

    async def ask() -> tuple[list[str], list[int]]:
        async with httpx.AsyncClient(base_url=server.url, timeout=None) as client:
            streams = [asyncio.create_task(honest(client, prompt)) for prompt in PROMPTS]
            await asyncio.sleep(0.5)
            large = [{"seed": 10**26}, {"top_k": 10**26}, {"min_tokens": -(10**26)}]
            bodies = [chat_body("Hello", 4, stream=False) | one for one in large]
            ends = await asyncio.gather(*(client.post(CHAT, json=body) for body in bodies))
            return await asyncio.gather(*streams), [end.status_code for end in ends]

    texts, statuses = asyncio.run(ask())
    assert texts == undisturbed
    assert statuses == [400, 400, 400]
    assert deaths(server) == before
