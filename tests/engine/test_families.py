"""Every family in the CPU platform's table gives transformers' greedy tokens, alone and as prefill
and decode, and with EAGLE where the table says so.
"""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from pd_eagle import cpu_families, engine_args
from tests.engine_process import EngineHost
from tests.tiny_families import TINY, greedily, tiny_family
from tests.tiny_models import tiny_draft

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Json = dict[str, Any]

ANSWER = 20
# From within every window and rope length to beyond; two share a prefix.
PROMPTS = [[(7 * i + 3 * j) % 255 + 1 for j in range(5 + 13 * i)] for i in range(4)]
PROMPTS += [[*PROMPTS[3][:33], 9, 8, 7], [5, 9]]
SAMPLING = {"temperature": 0, "max_new_tokens": ANSWER, "ignore_eos": True}
# What differs between families is attention, experts and the head; the transfer is one for all.
OVER_A_PAIR = ("qwen2", "qwen3", "phi3", "mistral-window", "gemma2", "qwen3-moe")
WITH_EAGLE = ("llama3", "mistral-window", "qwen2", "qwen3", "qwen3-moe", "phi3", "glm4", "gemma3")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineHost]:
    with EngineHost(tmp_path_factory.mktemp("host") / "host.log") as host:
        yield host


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("families"))


class Models:
    """Each family's folder and transformers' answers, made when first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._expected: dict[str, list[list[int]]] = {}

    def path(self, name: str) -> Path:
        return self._folder / name

    def expected(self, name: str) -> list[list[int]]:
        if name not in self._expected:
            model = tiny_family(self.path(name), name)
            self._expected[name] = [greedily(model, prompt, ANSWER) for prompt in PROMPTS]
        return self._expected[name]

    def config(self, name: str) -> Json:
        config: Json = json.loads((self.path(name) / "config.json").read_text())
        return config

    def arguments(self, name: str) -> Json:
        return {"model_path": str(self.path(name)), **engine_args.of_model(self.config(name))}


def requests(**more: Any) -> list[Json]:
    return [{"input_ids": prompt, "sampling_params": SAMPLING, **more} for prompt in PROMPTS]


def ids(answers: list[Json]) -> list[list[int]]:
    return [answer["output_ids"] for answer in answers]


@pytest.mark.parametrize("name", TINY)
def test_a_family_gives_transformers_tokens(host: EngineHost, models: Models, name: str) -> None:
    expected = models.expected(name)
    assert max(len(set(answer)) for answer in expected) > 4, "an answer that shows nothing"
    assert cpu_families.why_not(models.config(name)) is None
    with host.engine(**models.arguments(name)) as engine:
        assert ids(engine.generate(requests())) == expected


@pytest.mark.parametrize("name", OVER_A_PAIR)
def test_prefill_and_decode_give_them_too(host: EngineHost, models: Models, name: str) -> None:
    expected, port = models.expected(name), free_port()
    shared: Json = {
        **models.arguments(name),
        "disaggregation_transfer_backend": "nixl",
        "disaggregation_bootstrap_port": port,
    }
    backup = {"disaggregation_decode_retraction_backup": "cpu_tensor"}
    where = {"bootstrap_host": "127.0.0.1", "bootstrap_port": port}
    rooms = [request | {"bootstrap_room": i} for i, request in enumerate(requests(**where), 100)]
    with (
        host.engine(disaggregation_mode="prefill", **shared) as prefill,
        host.engine(disaggregation_mode="decode", **shared, **backup) as decode,
    ):
        prefill.wait_ready()
        decode.submit(rooms)
        prefill.generate(rooms)
        assert ids(decode.answers()) == expected


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.mark.parametrize("name", WITH_EAGLE)
def test_eagle_changes_no_token(
    host: EngineHost, models: Models, tmp_path: Path, name: str
) -> None:
    expected = models.expected(name)
    assert cpu_families.why_not(models.config(name), "EAGLE") is None
    draft = tiny_draft(tmp_path / "draft", models.path(name), steps=40, sequences=64, length=24)
    eagle: Json = {
        "speculative_algorithm": "EAGLE",
        "speculative_draft_model_path": str(draft),
        "speculative_num_steps": 2,
        "speculative_eagle_topk": 3,
        "speculative_num_draft_tokens": 6,
    }
    with host.engine(**models.arguments(name), **eagle) as engine:
        answers = engine.generate(requests())
    assert ids(answers) == expected
    verifications = sum(answer["meta_info"]["spec_verify_ct"] for answer in answers)
    assert verifications < ANSWER * len(answers), "no draft was accepted, so nothing was tested"


def test_the_table_holds_what_is_tested_and_nothing_else(models: Models) -> None:
    tested = {models.config(name)["architectures"][0] for name in TINY if models.expected(name)}
    assert tested == set(cpu_families.FAMILIES)
    drafted = {models.config(name)["architectures"][0] for name in WITH_EAGLE}
    assert drafted == {a for a, family in cpu_families.FAMILIES.items() if family.drafts}
