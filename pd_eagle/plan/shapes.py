"""The shape of a model, from its config.json: heads, widths, sizes, bytes.

It reads no weights and knows nothing of devices or settings. What a TP must divide follows SGLang
0.5.23: srt/models/qwen2.py, srt/layers/linear.py, srt/layers/moe/fused_moe_triton/layer.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pd_eagle.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_DTYPE_BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "float8_e4m3fn": 1.0}
# Bytes a quantized weight takes, scales included: 4-bit formats carry one scale (and zero point)
# for each 16 to 128 weights.
_METHOD_BYTES = {"fp8": 1.0, "mxfp4": 4.25 / 8, "fbgemm_fp8": 1.0, "w8a8_int8": 1.0}
_FOUR_BIT_SCALE = 0.25 / 8


@dataclass(frozen=True, slots=True)
class Experts:
    """The mixture-of-experts part: `layers` of the model's layers have it."""

    count: int
    width: int
    shared_width: int
    layers: int


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-head latent attention (MLA): what every rank caches whole, and the projections."""

    kv_rank: int
    q_rank: int | None
    rope_dim: int
    nope_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Numbers of one model; sizes in elements, `*_bytes` in bytes."""

    name: str
    architectures: tuple[str, ...]
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: int
    intermediate_size: int
    vocab_size: int
    max_positions: int | None
    dtype: str
    tied_embeddings: bool
    experts: Experts | None = None
    latent: Latent | None = None
    quantization: str | None = None
    quantized_bytes: float | None = None
    weight_block: int | None = None
    draft_vocab_size: int | None = None
    target_hidden_size: int | None = None
    aux_hidden_states: int | None = None
    checkpoint_bytes: int | None = None

    @property
    def is_mla(self) -> bool:
        return self.latent is not None

    @property
    def dtype_bytes(self) -> float:
        return _DTYPE_BYTES.get(self.dtype, 2.0)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV that one token takes over all layers and all ranks of one TP group of 1."""
        if self.latent:
            entry = self.latent.kv_rank + self.latent.rope_dim
        else:
            entry = 2 * self.kv_heads * self.head_dim
        return round(self.layers * entry * self.dtype_bytes)

    @property
    def layer_weights(self) -> int:
        """Weights of all layers of a dense model: each token is multiplied with all of them."""
        return self._dense_weights()

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights: of the checkpoint where it is at hand, else counted."""
        if self.checkpoint_bytes is not None:
            return self.checkpoint_bytes
        linear = self.quantized_bytes or self.dtype_bytes
        # MXFP4 checkpoints (gpt-oss) quantize the experts alone.
        dense = self.dtype_bytes if self.quantization == "mxfp4" else linear
        return round(
            self._embedding_weights() * self.dtype_bytes
            + self._dense_weights() * dense
            + self._expert_weights() * linear
        )

    def why_not_tp(self, tp: int) -> str | None:
        """Return why the model cannot be split by `tp`, or None when it can."""
        return next(self._obstacles(tp), None)

    def _obstacles(self, tp: int) -> Iterator[str]:
        if self.heads % tp:
            yield f"{self.heads} attention heads do not divide by {tp}"
        # Every rank of an MLA model holds the one latent head.
        if not self.latent and self.kv_heads % tp and tp % self.kv_heads:
            yield f"{self.kv_heads} KV heads and TP {tp} do not divide each other"
        for what, width in self._widths():
            if width % tp:
                yield f"{what} {width} does not divide by {tp}"
            elif self.weight_block and (width // tp) % self.weight_block:
                yield f"{what} {width} / {tp} is no multiple of the FP8 block {self.weight_block}"

    def _widths(self) -> Iterator[tuple[str, int]]:
        if not self.experts or self.experts.layers < self.layers:
            yield "MLP width", self.intermediate_size
        if self.experts:
            yield "expert width", self.experts.width
            if self.experts.shared_width:
                yield "shared expert width", self.experts.shared_width

    def _embedding_weights(self) -> int:
        head = 0 if self.tied_embeddings else self.draft_vocab_size or self.vocab_size
        return (self.vocab_size + head) * self.hidden_size

    def _dense_weights(self) -> int:
        sparse = self.experts.layers if self.experts else 0
        mlp = (self.layers - sparse) * 3 * self.hidden_size * self.intermediate_size
        return self.layers * self._attention_weights() + mlp

    def _attention_weights(self) -> int:
        if not self.latent:
            queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
            return self.hidden_size * 2 * (queries + keys)
        part = self.latent
        query_width = self.heads * (part.nope_dim + part.rope_dim)
        query = (
            part.q_rank * (self.hidden_size + query_width)
            if part.q_rank
            else self.hidden_size * query_width
        )
        down = self.hidden_size * (part.kv_rank + part.rope_dim)
        up = part.kv_rank * self.heads * (part.nope_dim + part.value_dim)
        return query + down + up + self.heads * part.value_dim * self.hidden_size

    def _expert_weights(self) -> int:
        if not self.experts:
            return 0
        part = self.experts
        width = part.count * part.width + part.shared_width
        router = self.hidden_size * part.count
        return part.layers * (3 * self.hidden_size * width + router)


def shape_of(
    name: str, config: Mapping[str, Any], checkpoint_bytes: int | None = None
) -> ModelShape:
    """Read the shape out of `config`, a config.json; a multimodal model's language part counts.

    Raises SettingsError when a number that every model has is missing.
    """
    part = _renamed({**config, **config.get("text_config", {}), **config.get("llm_config", {})})
    quantization, quantized_bytes, block = _quantization(config)
    try:
        heads, hidden = int(part["num_attention_heads"]), int(part["hidden_size"])
        layers, width = int(part["num_hidden_layers"]), int(part["intermediate_size"])
        vocabulary = int(part["vocab_size"])
    except KeyError as missing:
        raise SettingsError(f"{name}: its config.json has no {missing}") from None
    experts = _experts(part, layers, width)
    return ModelShape(
        name=name,
        architectures=tuple(config.get("architectures") or part.get("architectures") or ()),
        hidden_size=hidden,
        heads=heads,
        kv_heads=int(part.get("num_key_value_heads") or heads),
        head_dim=int(part.get("head_dim") or hidden // heads),
        layers=layers,
        # Llama 4 calls the dense layers' width by another name: intermediate_size is an expert's.
        intermediate_size=int(part.get("intermediate_size_mlp") or width),
        vocab_size=vocabulary,
        max_positions=part.get("max_position_embeddings"),
        dtype=str(part.get("dtype") or part.get("torch_dtype") or "bfloat16"),
        tied_embeddings=bool(part.get("tie_word_embeddings", False)),
        experts=experts,
        latent=_latent(part),
        quantization=quantization,
        quantized_bytes=quantized_bytes,
        weight_block=block,
        draft_vocab_size=config.get("draft_vocab_size"),
        target_hidden_size=config.get("target_hidden_size"),
        aux_hidden_states=config.get("num_aux_hidden_states"),
        checkpoint_bytes=checkpoint_bytes,
    )


# How GPT-2 and its kind call what everybody else calls otherwise.
_ALIASES = {
    "num_attention_heads": "n_head",
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner",
}


def _renamed(part: Mapping[str, Any]) -> Mapping[str, Any]:
    found = {name: part[alias] for name, alias in _ALIASES.items() if part.get(alias)}
    if "n_embd" in part:
        found.setdefault("intermediate_size", 4 * int(part["n_embd"]))
    return {**found, **part}


def _first(part: Mapping[str, Any], *names: str) -> int:
    return next((int(part[name]) for name in names if part.get(name)), 0)


def _experts(part: Mapping[str, Any], layers: int, width: int) -> Experts | None:
    count = _first(part, "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    if count < 2:
        return None
    expert_width = _first(part, "moe_intermediate_size") or width
    shared = _first(part, "shared_expert_intermediate_size")
    if not shared:
        shared = expert_width * _first(part, "n_shared_experts", "moe_num_shared_experts")
    if not shared and "intermediate_size_mlp" in part:
        shared = expert_width  # Llama 4: one shared expert, which config.json does not name
    return Experts(count, expert_width, shared, _sparse_layers(part, layers))


def _sparse_layers(part: Mapping[str, Any], layers: int) -> int:
    # Qwen counts from layer 1 with a step, DeepSeek and GLM start after the first dense ones,
    # Llama 4 interleaves.
    step = _first(part, "decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_freq") or 1
    first = _first(part, "first_k_dense_replace")
    dense = set(part.get("mlp_only_layers") or ())
    return sum(
        1 for layer in range(first, layers) if (layer + 1) % step == 0 and layer not in dense
    )


def _latent(part: Mapping[str, Any]) -> Latent | None:
    if not part.get("kv_lora_rank"):
        return None
    return Latent(
        kv_rank=int(part["kv_lora_rank"]),
        q_rank=part.get("q_lora_rank"),
        rope_dim=int(part.get("qk_rope_head_dim", 0)),
        nope_dim=int(part.get("qk_nope_head_dim", 0)),
        value_dim=int(part.get("v_head_dim", 0)),
    )


def _quantization(config: Mapping[str, Any]) -> tuple[str | None, float | None, int | None]:
    """Return the method, the bytes of a weight, and the FP8 block that widths must keep."""
    part = config.get("quantization_config") or {}
    method = part.get("quant_method")
    if not method:
        return None, None, None
    block = part.get("weight_block_size") or [None]
    bits = _bits(part)
    if method in _METHOD_BYTES:
        weight = _METHOD_BYTES[method]
    else:
        weight = bits / 8 + (_FOUR_BIT_SCALE if bits < 8 else 0.0)
    return str(method), weight, block[0]


def _bits(part: Mapping[str, Any]) -> int:
    """Return the bits of a weight under AWQ, GPTQ, compressed-tensors, ModelOpt or bitsandbytes."""
    for group in (part.get("config_groups") or {}).values():
        found = (group.get("weights") or {}).get("num_bits")
        if found:
            return int(found)
    if "NVFP4" in str(part.get("quant_algo", "")) or part.get("load_in_4bit"):
        return 4
    return int(part.get("bits") or part.get("w_bit") or 8)
