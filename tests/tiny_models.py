"""Makes tiny Llama-style models and EAGLE drafts for them, on disk, in seconds; knows nothing of
engines. Weights are random, a tokenizer's words are its token ids, and a draft is trained on what
its target says: a random draft is never right, so it tests nothing.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

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
    _tokenizer(vocab).save_pretrained(path)
    return path


def _tokenizer(vocab: int) -> PreTrainedTokenizerFast:
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
    steps: int = 200,
    sequences: int = 192,
    length: int = 48,
    seed: int = 1,
) -> Path:
    """Write an EAGLE draft of the model in `target` to `path`, trained on its greedy answers.

    EAGLE (arXiv 2401.15077): from the target's last hidden state at t and the token at t + 1,
    foretell the hidden state at t + 1 and with the target's own head the token at t + 2.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM.from_pretrained(target, dtype=torch.float32)
    tokens, states = _answers(model, sequences, length)
    draft = _Draft(model.config)
    optimizer = torch.optim.AdamW(draft.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, steps)
    for _ in range(steps):
        rows = torch.randint(0, sequences, (32,))
        loss = _loss(model, draft, tokens[rows], states[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    _save_draft(path, draft, model.config)
    return path


class _Draft(nn.Module):  # type: ignore[misc]  # torch is skipped here
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.fc = nn.Linear(2 * width, width)
        self.layers = nn.ModuleList([LlamaDecoderLayer(config, 0)])
        self.layers[0].input_layernorm = nn.Identity()
        self._rotary = [LlamaRotaryEmbedding(config)]

    def forward(self, embedded: Tensor, states: Tensor) -> Tensor:
        fused = self.fc(torch.cat((embedded, states), dim=-1))
        angles = self._rotary[0](fused, torch.arange(fused.shape[1]).unsqueeze(0))
        foretold: Tensor = self.layers[0](fused, attention_mask=None, position_embeddings=angles)
        return foretold


def _answers(model: Any, sequences: int, length: int) -> tuple[Tensor, Tensor]:
    """Return greedy answers to random prompts and the states that the head sees."""
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
        return tokens, model.model(tokens).last_hidden_state


def _loss(model: Any, draft: _Draft, tokens: Tensor, states: Tensor) -> Tensor:
    with torch.no_grad():
        embedded = model.model.embed_tokens(tokens[:, 1:])
        wanted = model.lm_head(states[:, 1:]).softmax(-1)
    foretold = draft(embedded, states[:, :-1])
    near = nn.functional.smooth_l1_loss(foretold, states[:, 1:])
    alike = nn.functional.cross_entropy(model.lm_head(foretold).flatten(0, 1), wanted.flatten(0, 1))
    return near + alike


def _save_draft(path: Path, draft: _Draft, config: LlamaConfig) -> None:
    path.mkdir(parents=True, exist_ok=True)
    weights = {n: w.detach().contiguous() for n, w in draft.named_parameters()}
    save_file(weights, path / "model.safetensors")
    # SGLang 0.5.23 looks for the embedding of a tied draft, which is the target's.
    changed = {
        "architectures": ["LlamaForCausalLMEagle"],
        "num_hidden_layers": 1,
        "tie_word_embeddings": False,
    }
    (path / "config.json").write_text(json.dumps(config.to_dict() | changed))
