"""The machine of a run and its models: real GPUs, or a CPU in their place on a dry run.

Knows how an engine is started for either, not what is measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from benchmarks.asking import ask
from pd_eagle import PDEngine, demo
from pd_eagle.plan import devices
from pd_eagle.plan.known_models import CONFIGS, DEFAULT
from pd_eagle.workers.engine import load_tokenizer
from tools.draft.tasks import EVERYDAY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.bench_eagle import Tree

#: Kernels that need no FlashInfer; SGLANG_KIT_ATTENTION takes another backend.
ATTENTION = "SGLANG_KIT_ATTENTION"
_NO_FLASHINFER = {"attention_backend": "triton", "sampling_backend": "pytorch"}
#: Replaces the 7B shape on a dry run; its vocabulary includes the tokenizer's.
_SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 49408,
}


@dataclass(frozen=True, slots=True)
class Host:
    """The machine under test; on a dry run, `gpus` is the number to simulate.

    `seconds` is how long a part goes on that may take any time.
    """

    gpus: int
    dry_run: bool
    folder: Path
    seconds: float = 180.0

    @property
    def device(self) -> str:
        return "cpu" if self.dry_run else "cuda"

    @property
    def exact(self) -> dict[str, object]:
        """Return engine arguments with which a token does not depend on the batch's shape.

        float32 is enough on a CPU; on CUDA SGLang (0.5.23) has no norm for float32, but
        batch-invariant kernels.
        """
        if self.dry_run:
            return {"dtype": "float32"}
        return {"dtype": "bfloat16", "enable_deterministic_inference": True}

    @property
    def small(self) -> dict[str, object]:
        """Return engine arguments with which many engines of the embedded model share a GPU."""
        return {} if self.dry_run else {"max_total_tokens": 65536}

    @property
    def shared(self) -> dict[str, Any]:
        """Return the settings of services that share GPUs, to be started under `sharing`."""
        return {} if self.dry_run else {"mem_fraction_static": 0.9}

    def settings(self, **engine_args: object) -> dict[str, Any]:
        """Return the settings common to all engines of this run."""
        args: dict[str, object] = dict(engine_args)
        if not self.dry_run:
            args = _NO_FLASHINFER | args
            if chosen := os.environ.get(ATTENTION):
                args["attention_backend"] = chosen
        return {"device": self.device, "engine_args": args}

    def embedded(self) -> dict[str, Any]:
        """Return settings for the embedded model, which is converted at first use."""
        return {"model_path": str(demo.model_dir())}

    def eagle(self, tree: Tree, draft: str | None = None) -> dict[str, Any]:
        return {
            "speculative_algorithm": "EAGLE",
            "speculative_draft_model_path": draft or str(demo.DRAFT),
            "speculative_num_steps": tree[0],
            "speculative_eagle_topk": tree[1],
            "speculative_num_draft_tokens": tree[2],
        }

    def big_model(self) -> Path:
        """Return a folder with the default model's exact shape, for SGLang's dummy weights.

        Its tokenizer is the embedded model's, whose ids are a subset of the big one's.
        """
        return self._shape("big", CONFIGS[DEFAULT] | _QWEN | (_SMALL if self.dry_run else {}))

    def big_draft(self) -> Path:
        """Return a folder with an EAGLE draft of `big_model`'s shape: one layer."""
        config = json.loads((self.big_model() / "config.json").read_text())
        changed = {"architectures": ["Qwen2ForCausalLMEagle"], "num_hidden_layers": 1}
        return self._shape("big-draft", config | changed)

    def _shape(self, name: str, config: dict[str, Any]) -> Path:
        folder = self.folder / "models" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        source = demo.model_dir()
        for file in (*source.glob("*token*.json"), *source.glob("chat_template*")):
            shutil.copy(file, folder)
        _name_every_id(folder / "tokenizer.json", config["vocab_size"])
        return folder

    def start(self, dtype: str | None = None, **settings: Any) -> PDEngine:
        """Start engines; `engine_args` in the settings extend the host's."""
        own = settings.pop("engine_args", {})
        assert isinstance(own, dict)
        if dtype:
            own = own | {"dtype": dtype}
        return PDEngine(**self.settings(**own), **settings)


def _name_every_id(tokenizer: Path, vocab_size: int) -> None:
    """Add a text for every id that random weights may generate: a stream carries only text."""
    described = json.loads(tokenizer.read_text())
    names = described["model"]["vocab"]
    names |= {f"<{i}>": i for i in range(len(names), vocab_size)}
    tokenizer.write_text(json.dumps(described))


_QWEN = {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DUMMY: dict[str, Any] = {"load_format": "dummy"}


@contextlib.contextmanager
def sharing() -> Iterator[None]:
    """Let several services share the GPUs, which is refused otherwise."""
    with patch("pd_eagle.front._SHARED_FRACTION", 1.0):
        yield


def found_gpus() -> int:
    """Return the number of GPUs that NVML lists."""
    return len(devices.discover("auto", os.environ.get("CUDA_VISIBLE_DEVICES")).devices)


def prompts(count: int) -> list[list[int]]:
    """Return questions outside the draft's training data, as token ids."""
    tokenizer = load_tokenizer({"model_path": str(demo.model_dir())})
    texts = [EVERYDAY[i % len(EVERYDAY)] for i in range(count)]
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for text in texts
    ]


def warmed(engine: PDEngine, ids: list[list[int]]) -> PDEngine:
    ask(engine, ids[:2], 2, 8)
    return engine
