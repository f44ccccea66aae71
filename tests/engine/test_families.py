"""Every family in the CPU platform's table gives transformers' greedy tokens, alone and as prefill
and decode, and with EAGLE where the table says so.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pd_eagle.plan import cpu_families, engine_args
from tests.engine_process import EngineHost
from tests.tiny_families import ANSWER, DRAFTED, PROMPTS, TINY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Json = dict[str, Any]

SAMPLING = {"temperature": 0, "max_new_tokens": ANSWER, "ignore_eos": True}
# What differs between families is attention, experts and the head; the transfer is one for all.
OVER_A_PAIR = ("qwen2", "qwen3", "phi3", "mistral-window", "gemma2", "qwen3-moe")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineHost]:
    with EngineHost(tmp_path_factory.mktemp("host") / "host.log") as host:
        yield host


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("families")
    subprocess.run([sys.executable, "-m", "tests.tiny_families", str(folder)], check=True)
    return Models(folder, json.loads((folder / "answers.json").read_text()))


@dataclass(frozen=True)
class Models:
    """The folder of all families, and what transformers answers."""

    folder: Path
    expected: dict[str, list[list[int]]]

    def config(self, name: str) -> Json:
        config: Json = json.loads((self.folder / name / "config.json").read_text())
        return config

    def architecture(self, name: str) -> str:
        return str(self.config(name)["architectures"][0])

    def arguments(self, name: str) -> Json:
        return {"model_path": str(self.folder / name), **engine_args.of_model(self.config(name))}


def requests(**more: Any) -> list[Json]:
    return [{"input_ids": prompt, "sampling_params": SAMPLING, **more} for prompt in PROMPTS]


def ids(answers: list[Json]) -> list[list[int]]:
    return [answer["output_ids"] for answer in answers]


@pytest.mark.parametrize("name", TINY)
def test_a_family_gives_transformers_tokens(host: EngineHost, models: Models, name: str) -> None:
    expected = models.expected[name]
    assert max(len(set(answer)) for answer in expected) > 4, "an answer that shows nothing"
    assert cpu_families.why_not(models.config(name)) is None
    with host.engine(**models.arguments(name)) as engine:
        assert ids(engine.generate(requests())) == expected


@pytest.mark.parametrize("name", OVER_A_PAIR)
def test_prefill_and_decode_give_them_too(host: EngineHost, models: Models, name: str) -> None:
    expected, port = models.expected[name], free_port()
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


def drafts() -> list[Any]:
    """Return each target with the folder of its draft."""
    llama = [pytest.param(name, f"{name}-draft", id=name) for name in DRAFTED]
    return [*llama, pytest.param("qwen2", "qwen2-draft-of-qwen2", id="a Qwen2 layer")]


@pytest.mark.parametrize(("name", "draft"), drafts())
def test_eagle_changes_no_token(host: EngineHost, models: Models, name: str, draft: str) -> None:
    assert cpu_families.why_not(models.config(name), "EAGLE") is None
    assert models.architecture(draft) in cpu_families.DRAFTS
    eagle: Json = {
        "speculative_algorithm": "EAGLE",
        "speculative_draft_model_path": str(models.folder / draft),
        "speculative_num_steps": 2,
        "speculative_eagle_topk": 3,
        "speculative_num_draft_tokens": 6,
    }
    with host.engine(**models.arguments(name), **eagle) as engine:
        answers = engine.generate(requests())
    assert ids(answers) == models.expected[name]
    verifications = sum(answer["meta_info"]["spec_verify_ct"] for answer in answers)
    assert verifications < ANSWER * len(answers), "no draft was accepted, so nothing was tested"


def test_the_table_holds_what_is_tested_and_nothing_else(models: Models) -> None:
    assert {models.architecture(name) for name in TINY} == set(cpu_families.FAMILIES)
    drafted = {name for name, family in cpu_families.FAMILIES.items() if family.drafts}
    assert {models.architecture(name) for name in DRAFTED} == drafted
