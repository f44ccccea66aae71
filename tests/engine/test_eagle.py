"""EAGLE with the embedded model and its own draft: the same text, fewer steps, over a pair too.

In float32, where a token does not depend on the shape of the batch that made it.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pd_eagle import PDEngine

if TYPE_CHECKING:
    from collections.abc import Iterator

NEW_TOKENS = 64
AT_A_TIME = 8
TOPICS = ["the sea", "a bicycle", "bread", "the number seven", "rain", "a library", "salt", "Mars"]
QUESTIONS = [f"Explain {topic} to a child in a few sentences." for topic in TOPICS] + [
    f"Write a short list of facts about {topic}." for topic in TOPICS
]
SCHEMA = {
    "type": "object",
    # Bounded: a sampled number may else have digits to the answer's last token.
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Answers:
    texts: list[str]
    ids: list[list[int]]
    accept_lengths: list[float]

    @property
    def mean_accept_length(self) -> float:
        return sum(self.accept_lengths) / len(self.accept_lengths)


async def ask_all(engine: PDEngine) -> Answers:
    turn = asyncio.Semaphore(AT_A_TIME)

    async def ask(question: str) -> dict[str, Any]:
        async with turn:
            result: dict[str, Any] = await engine.async_generate(
                messages=[{"role": "user", "content": question}],
                sampling_params={"temperature": 0, "max_new_tokens": NEW_TOKENS},
            )
            return result

    results = await asyncio.gather(*(ask(question) for question in QUESTIONS))
    return Answers(
        [result["text"] for result in results],
        [result["output_ids"] for result in results],
        [result["meta_info"].get("spec_accept_length", 1.0) for result in results],
    )


def engine(**settings: Any) -> PDEngine:
    # A sampled JSON may else be whitespace to its last token.
    arguments = {"dtype": "float32", "constrained_json_disable_any_whitespace": True}
    return PDEngine(engine_args=arguments, **settings)


@pytest.fixture(scope="module")
def plain() -> Answers:
    with engine(pd_mode="off") as running:
        return asyncio.run(ask_all(running))


@pytest.fixture(scope="module")
def unified() -> Answers:
    with engine(pd_mode="off", speculative_algorithm="EAGLE") as running:
        return asyncio.run(ask_all(running))


@pytest.fixture(scope="module")
def pair() -> Iterator[PDEngine]:
    with engine(pd_mode="on", speculative_algorithm="EAGLE") as running:
        yield running


@pytest.fixture(scope="module")
def over_a_pair(pair: PDEngine) -> Answers:
    return asyncio.run(ask_all(pair))


def test_unified_is_lossless(plain: Answers, unified: Answers) -> None:
    assert unified.ids == plain.ids
    assert unified.texts == plain.texts
    assert plain.accept_lengths == [1.0] * len(QUESTIONS)


def test_a_pair_is_lossless(plain: Answers, over_a_pair: Answers) -> None:
    assert over_a_pair.ids == plain.ids
    assert over_a_pair.texts == plain.texts


def test_the_draft_is_accepted(unified: Answers) -> None:
    # At least 1.8 tokens a verification is what the draft was made for: see its card.
    assert unified.mean_accept_length >= 1.8


def test_hidden_states_cross_the_handoff(unified: Answers, over_a_pair: Answers) -> None:
    ratio = over_a_pair.mean_accept_length / unified.mean_accept_length
    assert 0.97 <= ratio <= 1.03


def test_acceptance_is_in_health(pair: PDEngine, over_a_pair: Answers) -> None:
    assert over_a_pair.mean_accept_length > 1.5
    assert pair.health()["draft_model"].endswith("draft")
    until = time.monotonic() + 20  # it comes with the heartbeat, once a second
    found = None
    while found is None and time.monotonic() < until:
        time.sleep(0.1)
        decode = next(w for w in pair.health()["workers"] if w["name"] == "decode-0")
        found = decode["spec_accept_length"]
    assert found is not None
    assert found > 1.5


def test_the_engines_run_what_their_kv_holds(pair: PDEngine, over_a_pair: Answers) -> None:
    assert over_a_pair.ids
    health = pair.health()
    told = {one["name"]: one["value"] for one in health["plan"]["defaults"]}
    # SGLang alone: 48. The snapshot comes with the first sign of life.
    assert told["max_running_requests"] > 48
    decode = next(one for one in health["workers"] if one["name"] == "decode-0")
    assert decode["max_running"] > 48


def test_json_schema_over_a_pair(pair: PDEngine) -> None:
    """A regression of SGLang once aborted every such request (thread #29110, fixed by #28682)."""
    results = pair.generate(
        ["A person as JSON: ", "Another person as JSON: ", "A king as JSON: "],
        {"temperature": 0.7, "max_new_tokens": 80, "json_schema": json.dumps(SCHEMA)},
    )
    for result in results:
        assert result["meta_info"]["finish_reason"]["type"] == "stop", result
        person = json.loads(result["text"])
        assert set(person) == {"name", "age"}
        assert isinstance(person["age"], int)
