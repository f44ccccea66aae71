"""Which models engines on the CPU serve as transformers does, and the reason where one is refused:
by what config.json says alone; knows neither SGLang nor weights.

An engine that cannot run a model mostly starts nevertheless: it dies at its first request, or
answers with another model's text. So what is not in the table is refused before the start; every
row of it is held against transformers, token for token (tests/engine/test_families.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pd_eagle.errors import PlanRefused

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# What of the rotary embedding was held against transformers. "dynamic" depends on the whole length
# there, and "longrope" on that of the longest neighbour in the batch in SGLang 0.5.23.
_ROPES = frozenset({"default", "linear", "llama3", "yarn"})
_ANY: Mapping[str, tuple[object, ...]] = {"attention_factor": (None,)}  # of yarn
_SILU: Mapping[str, tuple[object, ...]] = {**_ANY, "hidden_act": ("silu",), "mlp_bias": (False,)}
_UNBIASED: Mapping[str, tuple[object, ...]] = {**_SILU, "attention_bias": (False,)}
_TIED: Mapping[str, tuple[object, ...]] = {"tie_word_embeddings": (True,)}
_GELU: Mapping[str, tuple[object, ...]] = {
    **_TIED,
    "hidden_act": ("gelu_pytorch_tanh",),
    "hidden_activation": ("gelu_pytorch_tanh", None),
    "use_bidirectional_attention": (False, None),
}
# SGLang 0.5.23 takes every layer for a sparse one.
_ALL_SPARSE: Mapping[str, tuple[object, ...]] = {
    "mlp_only_layers": ([], None),
    "decoder_sparse_step": (1,),
}


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture that was tried: what SGLang leaves open for a draft, and what the keys of
    config.json may say, where they say anything.
    """

    drafts: frozenset[str] = frozenset()
    ropes: frozenset[str] = _ROPES
    only: Mapping[str, tuple[object, ...]] = field(default_factory=dict)


_NO_ROPE_SCALING = frozenset({"default"})
_EAGLE, _EAGLE3 = "EAGLE", "EAGLE3"
_BOTH = frozenset({_EAGLE, _EAGLE3})

FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(_BOTH, only=_SILU),
    "MistralForCausalLM": Family(_BOTH, only=_SILU),
    "MinistralForCausalLM": Family(only=_SILU),
    "MixtralForCausalLM": Family(ropes=_NO_ROPE_SCALING, only=_SILU),
    "Qwen2ForCausalLM": Family(_BOTH, only=_SILU),
    "Qwen3ForCausalLM": Family(_BOTH, only=_SILU),
    "Qwen2MoeForCausalLM": Family(only={**_SILU, **_ALL_SPARSE}),
    "Qwen3MoeForCausalLM": Family(_BOTH, only={**_SILU, **_ALL_SPARSE}),
    "Phi3ForCausalLM": Family(
        _BOTH, _NO_ROPE_SCALING, {**_SILU, "partial_rotary_factor": (1, None)}
    ),
    "GemmaForCausalLM": Family(ropes=_NO_ROPE_SCALING, only={**_GELU, "attention_bias": (False,)}),
    "Gemma2ForCausalLM": Family(ropes=_NO_ROPE_SCALING, only=_GELU),
    "Gemma3ForCausalLM": Family(_BOTH, frozenset({"default", "linear"}), _GELU),
    "GPT2LMHeadModel": Family(
        only={
            **_TIED,
            "activation_function": ("gelu_new",),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "reorder_and_upcast_attn": (False,),
            "add_cross_attention": (False,),
        }
    ),
    "Starcoder2ForCausalLM": Family(
        ropes=_NO_ROPE_SCALING, only={"hidden_act": ("gelu_pytorch_tanh",)}
    ),
    "Olmo2ForCausalLM": Family(only=_SILU),
    "GraniteForCausalLM": Family(only=_UNBIASED),
    "GraniteMoeForCausalLM": Family(ropes=_NO_ROPE_SCALING, only=_UNBIASED),
    "Glm4ForCausalLM": Family(frozenset({_EAGLE}), only=_SILU),
    "SmolLM3ForCausalLM": Family(only=_SILU),
    "Ernie4_5ForCausalLM": Family(only=_SILU),
    "CohereForCausalLM": Family(only={**_UNBIASED, **_TIED}),
    "Cohere2ForCausalLM": Family(only={**_UNBIASED, **_TIED}),
}

DRAFTS = frozenset({"LlamaForCausalLMEagle", "LlamaForCausalLMEagle3", "Qwen2ForCausalLMEagle"})
"""The architectures of drafts that were tried."""


_TO_TRY = "wanted GPUs, another model, or CPU_UNTESTED_MODELS=true to try it all the same"


def check(
    variable: str, name: str, config: Mapping[str, Any], algorithm: str | None = None
) -> None:
    """Raise PlanRefused unless the model `name`, given as `variable`, runs on the CPU.

    `algorithm` is what a draft is to speed up, EAGLE or EAGLE3.
    """
    if reason := why_not(config, algorithm):
        raise PlanRefused(
            f"{variable}={name!r}: engines on the CPU cannot serve it: {reason}; {_TO_TRY}"
        )


def check_draft(variable: str, name: str, config: Mapping[str, Any]) -> None:
    """Raise PlanRefused unless engines on the CPU can draft with the model `name`."""
    if _architectures(config)[:1] and _architectures(config)[0] in DRAFTS:
        if reason := next(_of_weights(config), None):
            raise PlanRefused(f"{variable}={name!r}: engines on the CPU cannot draft: {reason}")
        return
    raise PlanRefused(
        f"{variable}={name!r}: engines on the CPU cannot draft with {_named(config)}: tested are "
        f"{', '.join(sorted(DRAFTS))}; {_TO_TRY}"
    )


def why_not(config: Mapping[str, Any], algorithm: str | None = None) -> str | None:
    """Return why engines on the CPU cannot serve a model with this config.json, or None."""
    return next(_obstacles(config, algorithm), None)


def _obstacles(config: Mapping[str, Any], algorithm: str | None) -> Iterator[str]:
    name = _named(config)
    family = FAMILIES.get(next(iter(_architectures(config)), ""))
    if family is None:
        yield f"{name} {_kind(config)}; tested are {', '.join(FAMILIES)}"
        return
    yield from _of_weights(config)
    ropes = _ropes(config)
    for rope in ropes:
        kind = rope.get("rope_type") or rope.get("type") or "default"
        if kind not in family.ropes:
            yield f"{name} with rope_type {kind!r}: SGLang's tokens are not those of transformers"
    for key, allowed in family.only.items():
        for value in (part[key] for part in (config, *ropes) if key in part):
            if value not in allowed:
                yield f"{name} with {key}={value!r}: SGLang knows {allowed[0]!r} alone"
    if algorithm and algorithm not in family.drafts:
        yield f"SGLang has no {algorithm} for {name}: unset SPECULATIVE_ALGORITHM"


def _architectures(config: Mapping[str, Any]) -> list[str]:
    found = config.get("architectures") or []
    return [str(name) for name in found] if isinstance(found, list) else [str(found)]


def _named(config: Mapping[str, Any]) -> str:
    return ", ".join(_architectures(config)) or "a model whose config.json has no architectures"


def _of_weights(config: Mapping[str, Any]) -> Iterator[str]:
    part = config.get("quantization_config") or config.get("compression_config")
    if part:
        method = part.get("quant_method") if isinstance(part, dict) else part
        method = method or "unknown"
        yield f"{_named(config)} with quantized weights ({method}) takes GPU kernels"


def _kind(config: Mapping[str, Any]) -> str:
    """Say of an architecture that is not in the table why, as far as its config tells."""
    for says, why in _KINDS:
        if says(config):
            return why
    return "was not tested on the CPU"


def _named_like(*parts: str) -> Any:
    return lambda config: any(part in name for name in _architectures(config) for part in parts)


def _has(*keys: str) -> Any:
    return lambda config: any(config.get(key) for key in keys)


_KINDS: tuple[tuple[Any, str], ...] = (
    (_has("is_encoder_decoder"), "is an encoder with a decoder, which SGLang does not serve"),
    (
        _named_like("Classification", "Reward", "Embedding", "Bert", "Roberta"),
        "makes scores or embeddings, not text",
    ),
    (
        _has("vision_config", "audio_config", "vision_tower", "mm_vision_tower"),
        "takes images or sound, whose encoders were not tried on the CPU",
    ),
    (_named_like("VL", "Llava", "Vision", "Audio"), "takes images or sound"),
    (
        _has("kv_lora_rank"),
        "has multi-head latent attention, for which SGLang has no CPU kernel here",
    ),
    (
        _has("ssm_cfg", "state_size", "mamba_d_state", "ssm_state_size", "linear_num_key_heads"),
        "has recurrent layers, which take GPU kernels",
    ),
    (
        lambda config: any(
            name.endswith("Model") and not name.endswith("LMHeadModel")
            for name in _architectures(config)
        ),
        "has no head that makes text",
    ),
)


def _ropes(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return every description of a rotary embedding: transformers 5 may have one for each kind of
    layer.
    """
    parts = (config.get("rope_scaling"), config.get("rope_parameters"))
    return [
        group
        for part in parts
        if isinstance(part, dict)
        for group in ([v for v in part.values() if isinstance(v, dict)] or [part])
    ]
