"""Tiny random models of the families that are tried on the CPU, made by transformers; knows
nothing of engines.

As a program it writes them all to a folder, with their answers: where pytest runs, a process that
has imported Gemma 3 ends in a crash (transformers 5.19).

Each has what its family has and others have not in reach of a short prompt: windows of 8 tokens,
caps that bite, rope scaling within the first hundred positions, more experts than are asked.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.tiny_models import tiny_draft, tiny_tokenizer

ANSWER = 20
# From within every window and rope length to beyond; two share a prefix.
PROMPTS = [[(7 * i + 3 * j) % 255 + 1 for j in range(5 + 13 * i)] for i in range(4)]
PROMPTS += [[*PROMPTS[3][:33], 9, 8, 7], [5, 9]]
# Those that a draft is made for.
DRAFTED = ("llama3", "mistral-window", "qwen2", "qwen3", "qwen3-moe", "phi3", "glm4", "gemma3")
VOCABULARY = 256
WINDOW = 8
Json = dict[str, Any]

_ENDS: Json = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_SIZES: Json = {
    **_ENDS,
    "initializer_range": 0.1,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
_EXPERTS: Json = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
_LOCAL_EXPERTS: Json = {"num_local_experts": 8, "num_experts_per_tok": 2}
_GEMMA: Json = {"tie_word_embeddings": True, "query_pre_attn_scalar": 16}


@dataclass(frozen=True)
class Tiny:
    """A config class of transformers and what is set in it; `bare` takes no sizes of ours."""

    config: str
    more: Json = field(default_factory=dict)
    bare: bool = False


def _rope(kind: str, **more: Any) -> Json:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, **more}}


_LLAMA3 = _rope(
    "llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)

TINY: dict[str, Tiny] = {
    "llama3": Tiny("LlamaConfig", _LLAMA3),
    "llama-linear": Tiny("LlamaConfig", _rope("linear")),
    "llama-biased": Tiny("LlamaConfig", {"attention_bias": True, "head_dim": 32}),
    "llama-tied": Tiny("LlamaConfig", {"tie_word_embeddings": True}),
    "mistral": Tiny("MistralConfig", {"sliding_window": None}),
    "mistral-window": Tiny("MistralConfig", {"sliding_window": WINDOW}),
    "ministral": Tiny("MinistralConfig", {"sliding_window": WINDOW}),
    "mixtral": Tiny("MixtralConfig", _LOCAL_EXPERTS),
    "qwen2": Tiny("Qwen2Config"),
    "qwen2-yarn": Tiny("Qwen2Config", _rope("yarn", original_max_position_embeddings=64)),
    "qwen2-window": Tiny(
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen2-moe": Tiny("Qwen2MoeConfig", {**_EXPERTS, "shared_expert_intermediate_size": 48}),
    "qwen3": Tiny("Qwen3Config"),
    "qwen3-moe": Tiny("Qwen3MoeConfig", _EXPERTS),
    "phi3": Tiny("Phi3Config"),
    "phi3-window": Tiny("Phi3Config", {"sliding_window": WINDOW}),
    "gemma": Tiny("GemmaConfig", {"tie_word_embeddings": True}),
    "gemma2": Tiny(
        "Gemma2Config",
        {
            **_GEMMA,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 10.0,
        },
    ),
    "gemma3": Tiny(
        "Gemma3TextConfig", {**_GEMMA, "sliding_window": WINDOW, "sliding_window_pattern": 2}
    ),
    "gpt2": Tiny(
        "GPT2Config",
        {**_ENDS, "initializer_range": 0.1, "n_embd": 64, "n_layer": 2, "n_head": 4},
        bare=True,
    ),
    "starcoder2": Tiny("Starcoder2Config", {"sliding_window": WINDOW}),
    "olmo2": Tiny("Olmo2Config"),
    "granite": Tiny("GraniteConfig", {"attention_multiplier": 0.3, "residual_multiplier": 0.8}),
    "granite-moe": Tiny("GraniteMoeConfig", _LOCAL_EXPERTS),
    "glm4": Tiny("Glm4Config"),
    "smollm3": Tiny("SmolLM3Config"),
    "ernie": Tiny("Ernie4_5Config"),
    "cohere": Tiny("CohereConfig", {"tie_word_embeddings": True}),
    "cohere2": Tiny("Cohere2Config", {"tie_word_embeddings": True, "sliding_window": WINDOW}),
}


def tiny_family(path: Path, name: str) -> Any:
    """Write the model `name` of TINY and a tokenizer to `path`; return the model itself.

    Its greedy answers wander, as those of `tiny_model` do.
    """
    torch.manual_seed(0)
    tiny = TINY[name]
    config = getattr(transformers, tiny.config)(**({} if tiny.bare else _SIZES) | tiny.more)
    # SDPA knows no soft cap.
    made = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model = made.float().eval()
    with torch.no_grad():
        _shake(model)
        _wander(model)
    model.save_pretrained(path)
    tiny_tokenizer(VOCABULARY).save_pretrained(path)
    return model


def _shake(model: Any) -> None:
    """Let every weight count: transformers makes norms of ones, biases of zeros."""
    for name, weight in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            weight.add_(torch.randn_like(weight) * 0.1)
        elif name.endswith("bias"):
            weight.add_(torch.randn_like(weight) * 0.05)
        elif weight.dim() == 3:  # experts
            torch.nn.init.normal_(weight, 0, 0.1)


_OUTPUTS = ("o_proj.weight", "down_proj.weight", "c_proj.weight")


def _wander(model: Any) -> None:
    """Make the choice clear; a tied model would repeat its last token, unless its layers outweigh
    the embedding.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head.weight is not embedding.weight:
        embedding.weight.mul_(8)
        head.weight.mul_(4)
        return
    for name, weight in model.named_parameters():
        if "post_" in name and "norm" in name and "gemma" in model.config.model_type:
            weight.add_(3)
        elif name.endswith(_OUTPUTS):
            weight.mul_(30)


def greedily(model: Any, prompt: list[int], count: int) -> list[int]:
    """Return the next `count` tokens, each from the whole text before it."""
    tokens = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(count):
            logits = model(tokens, use_cache=False).logits[:, -1:]
            tokens = torch.cat((tokens, logits.argmax(-1)), dim=1)
    answer: list[int] = tokens[0, len(prompt) :].tolist()
    return answer


def as_qwen2(draft: Path, path: Path) -> None:
    """Write to `path` the same draft as a Qwen2 layer, whose projections have biases."""
    weights = load_file(draft / "model.safetensors")
    for name in ("q_proj", "k_proj", "v_proj"):
        part = f"layers.0.self_attn.{name}"
        weights[f"{part}.bias"] = torch.zeros(len(weights[f"{part}.weight"]))
    path.mkdir()
    save_file(weights, path / "model.safetensors")
    config = json.loads((draft / "config.json").read_text())
    config |= {"architectures": ["Qwen2ForCausalLMEagle"], "model_type": "qwen2"}
    (path / "config.json").write_text(json.dumps(config))


def main(folder: Path) -> None:
    """Write every model to `folder`, a draft where there is one, and greedy answers to PROMPTS."""
    answers = {}
    for name in TINY:
        model = tiny_family(folder / name, name)
        answers[name] = [greedily(model, prompt, ANSWER) for prompt in PROMPTS]
    for name in DRAFTED:
        tiny_draft(folder / f"{name}-draft", folder / name, steps=40, sequences=64, length=24)
    as_qwen2(folder / "qwen2-draft", folder / "qwen2-draft-of-qwen2")
    (folder / "answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
