"""Makes tiny Llama-style models, and EAGLE drafts for those of any family, on disk, in seconds;
knows nothing of engines. Weights are random, a tokenizer's words are its token ids, and a draft is
trained on what its target says: a random draft is never right, so it tests nothing.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

if TYPE_CHECKING:
    from pathlib import Path

END = "<end>"
# Threads that wait for each other on a busy machine cost ten times what they save here.
torch.set_num_threads(1)


def tiny_model(
    path: Path,
    *,
    heads: int = 4,
    kv_heads: int = 2,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    vocab: int = 256,
    layers: int = 2,
    head_dim: int = 16,
    context: int = 2048,
) -> Path:
    """Write a random model and its tokenizer to `path`; return `path`.

    The weights are such that greedy answers wander instead of repeating themselves, that the
    choice is clear, and that it hangs mostly on the last tokens, so that a draft can learn it.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=heads * head_dim,
        intermediate_size=4 * heads * head_dim,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=context,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(8)
        model.lm_head.weight.mul_(4)
    model.to(dtype).save_pretrained(path)
    tiny_tokenizer(vocab).save_pretrained(path)
    return path


def tiny_tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    words = {END: 0} | {f"w{i}": i for i in range(1, vocab)}
    tokenizer = Tokenizer(WordLevel(words, unk_token=END))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END)
    fast.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    return fast


def tiny_draft(
    path: Path,
    target: Path,
    *,
    algorithm: Literal["EAGLE", "EAGLE3"] = "EAGLE",
    steps: int = 200,
    sequences: int = 192,
    length: int = 48,
    seed: int = 1,
) -> Path:
    """Write a draft of the model in `target` to `path`, trained on the model's greedy answers.

    From what the target knew at t and the token at t + 1, it foretells the token at t + 2; EAGLE
    (arXiv 2401.15077) by way of the state that the target's own head sees, EAGLE-3 (2503.01840)
    from the states between three of its layers and with a head of its own. EAGLE3 needs a target
    of at least 7 layers.
    """
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).requires_grad_(False)
    tokens, states = _answers(model, sequences, length)
    draft = _Eagle(model) if algorithm == "EAGLE" else _Eagle3(model)
    optimizer = torch.optim.AdamW(draft.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, steps)
    for _ in range(steps):
        rows = torch.randint(0, sequences, (32,))
        loss = draft.loss(tokens[rows], [state[rows] for state in states])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    _save_draft(path, draft, _llama_config(model.config))
    return path


def _llama_config(config: Any) -> LlamaConfig:
    """Return the sizes of a target of any family, for the Llama layer that drafts for it."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings")
    heads = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
    sizes = {name: getattr(config, name, None) for name in (*names, *heads)}
    return LlamaConfig(**sizes, bos_token_id=0, eos_token_id=0)


def _answers(model: Any, sequences: int, length: int) -> tuple[Tensor, list[Tensor]]:
    """Return greedy answers to random prompts, and the states before each layer and the head."""
    prompts = torch.randint(1, model.config.vocab_size, (sequences, 6))
    with torch.no_grad():
        tokens = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=length,
            min_new_tokens=length,
            do_sample=False,
            pad_token_id=0,
        )
        return tokens, list(model.model(tokens, output_hidden_states=True).hidden_states)


class _Eagle(nn.Module):  # type: ignore[misc]  # torch is skipped here
    """SGLang's `LlamaForCausalLMEagle`; its parameters have the names that SGLang loads."""

    architecture = "LlamaForCausalLMEagle"

    def __init__(self, model: Any) -> None:
        super().__init__()
        config = _llama_config(model.config)
        self._frozen = (model, LlamaRotaryEmbedding(config))  # in a tuple: not parameters of ours
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size)
        self.layers = nn.ModuleList([LlamaDecoderLayer(config, 0)])
        self.layers[0].input_layernorm = nn.Identity()

    def loss(self, tokens: Tensor, states: list[Tensor]) -> Tensor:
        model, rotary = self._frozen
        embedded, wanted = model.model.embed_tokens(tokens[:, 1:]), states[-1][:, 1:]
        fused = self.fc(torch.cat((embedded, states[-1][:, :-1]), dim=-1))
        foretold = self.layers[0](
            fused, attention_mask=None, position_embeddings=_angles(rotary, fused)
        )
        near = nn.functional.smooth_l1_loss(foretold, wanted)
        return near + _difference(model.lm_head(foretold), model.lm_head(wanted))


class _Eagle3(nn.Module):  # type: ignore[misc]  # torch is skipped here
    """SGLang's `LlamaForCausalLMEagle3`: the layer reads embedding and state side by side."""

    architecture = "LlamaForCausalLMEagle3"

    def __init__(self, model: Any) -> None:
        super().__init__()
        config, width = _llama_config(model.config), model.config.hidden_size
        self._frozen = (model, LlamaRotaryEmbedding(config))
        depth = config.num_hidden_layers
        # where SGLang 0.5.23 takes a target's states when its config says nothing
        self._taps = (2, depth // 2, depth - 3)
        self.fc = nn.Linear(3 * width, width, bias=False)
        layer = LlamaDecoderLayer(config, 0)
        layer.hidden_norm = LlamaRMSNorm(width, config.rms_norm_eps)
        for name in ("q_proj", "k_proj", "v_proj"):
            out = getattr(layer.self_attn, name).out_features
            setattr(layer.self_attn, name, nn.Linear(2 * width, out, bias=False))
        self.midlayer = layer
        self.norm = LlamaRMSNorm(width, config.rms_norm_eps)
        self.lm_head = nn.Linear(width, config.vocab_size, bias=False)

    def loss(self, tokens: Tensor, states: list[Tensor]) -> Tensor:
        model, rotary = self._frozen
        embedded = model.model.embed_tokens(tokens[:, 1:])
        state = self.fc(torch.cat([states[i][:, :-1] for i in self._taps], dim=-1))
        layer = self.midlayer
        both = torch.cat((layer.input_layernorm(embedded), layer.hidden_norm(state)), dim=-1)
        attended, _ = layer.self_attn(
            both, position_embeddings=_angles(rotary, both), attention_mask=None
        )
        state = state + attended
        state = state + layer.mlp(layer.post_attention_layernorm(state))
        return _difference(self.lm_head(self.norm(state)), model.lm_head(states[-1][:, 1:]))


def _angles(rotary: Any, states: Tensor) -> tuple[Tensor, Tensor]:
    angles: tuple[Tensor, Tensor] = rotary(states, torch.arange(states.shape[1]).unsqueeze(0))
    return angles


def _difference(foretold: Tensor, wanted: Tensor) -> Tensor:
    """Cross entropy of two sets of logits."""
    goal = wanted.detach().softmax(-1).flatten(0, 1)
    return nn.functional.cross_entropy(foretold.flatten(0, 1), goal)


def _save_draft(path: Path, draft: _Eagle | _Eagle3, config: LlamaConfig) -> None:
    path.mkdir(parents=True, exist_ok=True)
    weights = {n: w.detach().contiguous() for n, w in draft.named_parameters()}
    save_file(weights, path / "model.safetensors")
    changed = {
        "architectures": [draft.architecture],
        "num_hidden_layers": 1,
        # SGLang 0.5.23 looks for the embedding of a tied draft, which is the target's.
        "tie_word_embeddings": False,
        "draft_vocab_size": config.vocab_size,
    }
    (path / "config.json").write_text(json.dumps(config.to_dict() | changed))
