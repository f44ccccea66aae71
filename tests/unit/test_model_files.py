"""Only the served models' files are imported, and SGLang still knows all the others."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pd_eagle import cpu, demo
from pd_eagle.plan import deployment, devices, engine_args
from pd_eagle.plan.config import Settings
from pd_eagle.plan.devices import Inventory
from pd_eagle.workers import model_files

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in {
        "llama.py": "class LlamaForCausalLM(Module):\n",
        "llama_eagle.py": "class LlamaForCausalLMEagle(LlamaForCausalLM):\n",
        "phi.py": "class PhiForCausalLM(LlamaForCausalLM):\n",
        "registry.py": "",
    }.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_models_file_is_needed_and_those_of_its_drafts(folder: Path) -> None:
    assert model_files.others(folder, ["LlamaForCausalLM"]) == ["phi", "registry"]
    assert model_files.others(folder, ["PhiForCausalLM", "LlamaForCausalLMEagle"]) == [
        "llama",
        "registry",
    ]


@pytest.mark.parametrize("asked", [[], ["NobodysForCausalLM"], ["LlamaForCausalLM", "Nobody"]])
def test_all_files_are_imported_where_one_is_not_known(folder: Path, asked: list[str]) -> None:
    assert model_files.others(folder, asked) == []


PROGRAM = """
import json, os, sys
from pd_eagle.workers import model_files
model_files.import_registry(json.loads(sys.argv[1]))
from sglang.srt.models.registry import ModelRegistry
before = len(ModelRegistry.models)
print(before, "SGLANG_DISABLED_MODEL_ARCHS" in os.environ)
print("LlamaForCausalLM" in ModelRegistry.models)
if before < 20:
    print(ModelRegistry.is_arch_supported("GPT2LMHeadModel"), len(ModelRegistry.models) > 100)
"""


@pytest.mark.timeout(300)
def test_sglang_imports_the_others_when_it_is_asked_for_one() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, json.dumps(["LlamaForCausalLM"])],
        env=cpu.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    first, *others = done.stdout.splitlines()[-3:]
    assert int(first.split()[0]) < 20
    assert first.split()[1] == "False"
    assert others == ["True", "True True"]


def test_the_zygote_is_told_the_classes_of_model_and_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "discover", lambda *_: Inventory("cpu", (), "none"))
    monkeypatch.setattr(engine_args, "installed_transfers", lambda: {"nixl"})

    def told(**settings: object) -> object:
        decided = deployment.decide(Settings.from_kwargs(**settings), {})
        assert "architectures" not in decided.front_args()
        return decided.preload_args()["architectures"]

    model = {"model_path": str(demo.model_dir())}
    assert told(**model) == ["LlamaForCausalLM"]
    draft = {"speculative_algorithm": "EAGLE", "speculative_draft_model_path": str(demo.DRAFT)}
    assert told(**model | draft) == ["LlamaForCausalLM", "LlamaForCausalLMEagle"]
