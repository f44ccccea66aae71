"""The EAGLE draft: a fusing matrix and one decoder layer over the target's features.

EAGLE (Li et al. 2024, arXiv 2401.15077): at root ``t`` the draft reads the feature ``h[t]`` of the
target and the embedding of the token ``x[t+1]`` that follows it, and predicts ``h[t+1]``; the
target's own head turns that into the distribution of ``x[t+2]``. Parameter names, the order of the
concatenation, the missing norms and the biases are those of SGLang 0.5.23,
``srt/models/llama_eagle.py``.

Knows nothing of data or losses.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tools.draft.target import Shape, rope, rotate

if TYPE_CHECKING:
    from pathlib import Path


class _Attention(nn.Module):  # type: ignore[misc]
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        kv = shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, shape.heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.hidden, kv, bias=False)
        self.v_proj = nn.Linear(shape.hidden, kv, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.hidden, bias=False)


class _Mlp(nn.Module):  # type: ignore[misc]
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.mlp, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.mlp, bias=False)
        self.down_proj = nn.Linear(shape.mlp, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class _Layer(nn.Module):  # type: ignore[misc]
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = _Attention(shape)
        self.mlp = _Mlp(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)


@dataclass(frozen=True, slots=True)
class Memory:
    """Keys and values of the true features [b, kv, n, d], and of guessed ones per root and beam.

    ``branch_k`` and ``branch_v`` are [b, kv, roots, beams, depth, d]; empty at the root itself.
    """

    k: Tensor
    v: Tensor
    seen: Tensor
    """Which keys each root may see: bool [roots, n]."""
    branch_k: Tensor | None = None
    branch_v: Tensor | None = None

    def grown(self, k: Tensor, v: Tensor) -> Memory:
        """Return the memory with one more guessed key and value per root and beam."""
        k, v = k.unsqueeze(-2), v.unsqueeze(-2)
        if self.branch_k is not None and self.branch_v is not None:
            k = torch.cat((self.branch_k, k), dim=-2)
            v = torch.cat((self.branch_v, v), dim=-2)
        return Memory(self.k, self.v, self.seen, k, v)


class Draft(nn.Module):  # type: ignore[misc]
    """Everything EAGLE adds to a target; embedding and head stay the target's."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.fc = nn.Linear(2 * shape.hidden, shape.hidden)
        self.layers = nn.ModuleList([_Layer(shape)])

    @property
    def _layer(self) -> _Layer:
        layer = self.layers[0]
        assert isinstance(layer, _Layer)
        return layer

    def read(self, embeds: Tensor, features: Tensor, seen: Tensor) -> tuple[Tensor, Memory]:
        """Read true features; return guesses [b, n, hidden] and the memory that branches grow from.

        ``embeds[:, t]`` is the embedding of ``x[t+1]``, ``features[:, t]`` is ``h[t]``; ``seen`` is
        what roots may see later, bool [roots, n].
        """
        x = self.fc(torch.cat((embeds, features), dim=-1))
        q, k, v = self._project(x, torch.arange(x.shape[1], device=x.device))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self._finish(x, mixed.transpose(1, 2)), Memory(k, v, seen)

    def extend(
        self, embeds: Tensor, guesses: Tensor, positions: Tensor, memory: Memory
    ) -> tuple[Tensor, Memory]:
        """Take one more step from guessed features, in every beam of every root.

        ``embeds`` and ``guesses`` are [b, roots, beams, hidden]; ``positions`` [roots] are those of
        the new rows. Each row attends to the true keys its root may see and to the guessed rows
        above it.
        """
        b, roots, beams, _ = guesses.shape
        x = self.fc(torch.cat((embeds, guesses), dim=-1)).flatten(1, 2)
        q, k, v = self._project(x, positions.repeat_interleave(beams))
        memory = memory.grown(k.unflatten(2, (roots, beams)), v.unflatten(2, (roots, beams)))
        mixed = self._branch_attention(q.unflatten(2, (roots, beams)), memory)
        return self._finish(x, mixed.flatten(1, 2)).view(b, roots, beams, -1), memory

    def _project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attn, d = self._layer.self_attn, self.shape.head_dim
        cos, sin = (part.to(x.dtype) for part in rope(positions, d, self.shape.rope_theta))
        q, k, v = (
            part.unflatten(-1, (-1, d)).transpose(1, 2)
            for part in (attn.q_proj(x), attn.k_proj(x), attn.v_proj(x))
        )
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def _branch_attention(self, q: Tensor, memory: Memory) -> Tensor:
        """[b, heads, roots, beams, d] to [b, roots, beams, heads, d]: one softmax over both."""
        assert memory.branch_k is not None
        assert memory.branch_v is not None
        grouped = q.unflatten(1, (self.shape.kv_heads, -1)) * self.shape.head_dim**-0.5
        near = torch.einsum("bhgrmd,bhrmjd->bhgrmj", grouped, memory.branch_k)
        far = torch.einsum("bhgrmd,bhnd->bhgrmn", grouped, memory.k)
        far = far.masked_fill(~memory.seen[:, None], float("-inf"))
        weights = torch.cat((far, near), dim=-1).softmax(dim=-1, dtype=torch.float32).to(q.dtype)
        far, near = weights.split((far.shape[-1], near.shape[-1]), dim=-1)
        mixed = torch.einsum("bhgrmn,bhnd->bhgrmd", far, memory.v)
        mixed = mixed + torch.einsum("bhgrmj,bhrmjd->bhgrmd", near, memory.branch_v)
        return mixed.flatten(1, 2).permute(0, 2, 3, 1, 4)

    def _finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        layer = self._layer
        x = x + layer.self_attn.o_proj(mixed.flatten(-2))
        norm = layer.post_attention_layernorm
        # the weight in the dtype of x: mixed dtypes would miss the fused kernel
        normed = F.rms_norm(x, (self.shape.hidden,), norm.weight.to(x.dtype), self.shape.norm_eps)
        y: Tensor = x + layer.mlp(normed)
        return y


def fresh(shape: Shape, seed: int, embed_rms: float, feature_rms: float) -> Draft:
    """Return an untrained draft whose two inputs count alike.

    Without an input norm the raw sizes matter: SmolLM2's embeddings are 14 times smaller than its
    features, and a plain initialisation would hardly see which token it continues.
    """
    generator = torch.Generator().manual_seed(seed)
    draft = Draft(shape)
    with torch.no_grad():
        for name, parameter in draft.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()
        draft.fc.weight[:, : shape.hidden] /= embed_rms
        draft.fc.weight[:, shape.hidden :] /= feature_rms
        draft._layer.self_attn.o_proj.weight *= 0.5
        draft._layer.mlp.down_proj.weight *= 0.5
    return draft


def config_json(shape: Shape, begin_id: int, end_id: int) -> dict[str, Any]:
    """Return the config.json that SGLang 0.5.23 loads the draft by."""
    return {
        "architectures": ["LlamaForCausalLMEagle"],
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": begin_id,
        "eos_token_id": end_id,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "max_position_embeddings": shape.max_positions,
        "mlp_bias": False,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": 1,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        # SGLang hands the target's embedding and head only to a draft that does not tie its own
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": shape.vocab,
    }


def save(draft: Draft, folder: Path, begin_id: int, end_id: int) -> None:
    """Write config.json and model.safetensors (bfloat16) for SGLang."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.detach().to("cpu", torch.bfloat16) for k, v in draft.state_dict().items()}
    path = folder / "model.safetensors"
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes it private
    config = config_json(draft.shape, begin_id, end_id)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def restore(folder: Path, shape: Shape) -> Draft:
    """Load what ``save`` wrote, in float32."""
    draft = Draft(shape)
    weights = load_file(folder / "model.safetensors")
    draft.load_state_dict({k: v.float() for k, v in weights.items()})
    return draft
