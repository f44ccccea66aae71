"""A small Llama target as plain tensors: hidden states, logits, and one forward for every cache.

Knows nothing of drafts, prompts or sampling. It is written out here, and not taken from
transformers' model, because the draft needs the same rotary code and generation its own cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
    """(layer, q [b, heads, n, d], k and v [b, kv_heads, n, d]) to [b, heads, n, d]."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that a Llama target and its draft share."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    rope_theta: float
    norm_eps: float
    max_positions: int


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer, with q/k/v and gate/up each as one matrix."""

    attn_norm: Tensor
    qkv: Tensor
    out: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


def rope(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return float32 cos and sin of shape ``positions.shape + (head_dim,)``."""
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    angles = positions[..., None].float() * theta ** (-exponents / head_dim)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate ``x`` [..., head_dim] in the half-split (NeoX) layout that Llama checkpoints use."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def causal(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend over the same tokens, each to itself and what is before it."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


class Target:
    """A Llama model for reading only; all tensors live on one device in one dtype."""

    def __init__(
        self, shape: Shape, embed: Tensor, head: Tensor, norm: Tensor, layers: list[Layer]
    ):
        self.shape = shape
        self.embed = embed
        self.head = head
        self.norm = norm
        self.layers = layers

    @property
    def device(self) -> torch.device:
        return self.embed.device

    def hidden(self, ids: Tensor, positions: Tensor, attend: Attend = causal) -> Tensor:
        """Return the states after the final norm, [b, n, hidden], for ``ids`` [b, n]."""
        with torch.no_grad():
            return self._hidden(ids, positions, attend)

    def _hidden(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        x = F.embedding(ids, self.embed)
        cos, sin = rope(positions, self.shape.head_dim, self.shape.rope_theta)
        turn = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
        for index, layer in enumerate(self.layers):
            x = x + self._attention(index, layer, self._normed(x, layer.attn_norm), turn, attend)
            gate, up = (self._normed(x, layer.mlp_norm) @ layer.gate_up.T).chunk(2, dim=-1)
            x = x + (F.silu(gate) * up) @ layer.down.T
        return self._normed(x, self.norm)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [..., vocab] of states [..., hidden]."""
        return hidden @ self.head.T

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (self.shape.hidden,), weight, self.shape.norm_eps)

    def _attention(
        self, index: int, layer: Layer, x: Tensor, turn: tuple[Tensor, Tensor], attend: Attend
    ) -> Tensor:
        s = self.shape
        split = (x @ layer.qkv.T).unflatten(-1, (s.heads + 2 * s.kv_heads, s.head_dim))
        split = split.transpose(1, 2)
        turned = rotate(split[:, : s.heads + s.kv_heads], *turn)
        q, k = turned.split((s.heads, s.kv_heads), dim=1)
        mixed = attend(index, q, k, split[:, s.heads + s.kv_heads :])
        return mixed.transpose(1, 2).flatten(-2) @ layer.out.T


def from_transformers(model: Any, device: torch.device, dtype: torch.dtype) -> Target:
    """Take the weights of a transformers ``LlamaForCausalLM`` (no biases, one rotary base)."""
    config = model.config
    weights = {k: v.detach().to(device, dtype) for k, v in model.state_dict().items()}
    shape = Shape(
        vocab=config.vocab_size,
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        mlp=config.intermediate_size,
        rope_theta=float(config.rope_parameters["rope_theta"]),
        norm_eps=config.rms_norm_eps,
        max_positions=config.max_position_embeddings,
    )
    embed = weights["model.embed_tokens.weight"]
    head = embed if config.tie_word_embeddings else weights["lm_head.weight"]
    layers = [_layer(weights, f"model.layers.{i}.") for i in range(shape.layers)]
    return Target(shape, embed, head, weights["model.norm.weight"], layers)


def _layer(weights: dict[str, Tensor], prefix: str) -> Layer:
    def joined(*names: str) -> Tensor:
        return torch.cat([weights[f"{prefix}{name}.weight"] for name in names])

    return Layer(
        attn_norm=joined("input_layernorm"),
        qkv=joined("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        out=joined("self_attn.o_proj"),
        mlp_norm=joined("post_attention_layernorm"),
        gate_up=joined("mlp.gate_proj", "mlp.up_proj"),
        down=joined("mlp.down_proj"),
    )


def load(path: Path, device: torch.device, dtype: torch.dtype) -> tuple[Target, Any]:
    """Load the target and its tokenizer from a GGUF file or a Hugging Face folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder, extra, quant = path, {}, {}
    if path.suffix == ".gguf":
        folder, extra = path.parent, {"gguf_file": path.name}
        quant = {"quantization_config": GgufConfig(dequantize=True)}
    tokenizer = AutoTokenizer.from_pretrained(folder, **extra)
    model = AutoModelForCausalLM.from_pretrained(folder, **extra, **quant, dtype=torch.float32)
    return from_transformers(model, device, dtype), tokenizer
