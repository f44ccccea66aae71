"""Model shapes: what config.json says, which TPs split it, how many bytes it takes."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from pd_eagle.errors import SettingsError
from pd_eagle.plan import models
from pd_eagle.plan.config import Settings
from pd_eagle.plan.known_models import CONFIGS, DEFAULT, DRAFTS, EMBEDDED
from pd_eagle.plan.models import load_shape, model_of
from pd_eagle.plan.shapes import ModelShape, shape_of

if TYPE_CHECKING:
    from pathlib import Path

GQA = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8}
MLA = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}

# The language part of each model's own config.json, and the parameters its card counts.
REAL: dict[str, tuple[dict[str, Any], int]] = {
    "Qwen/Qwen2.5-7B-Instruct": (CONFIGS[DEFAULT], 7_615_616_512),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (CONFIGS[EMBEDDED], 134_515_008),
    "meta-llama/Llama-3.1-70B": (
        {
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_attention_heads": 64,
            "num_hidden_layers": 80,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
        },
        70_553_706_496,
    ),
    "mistralai/Mixtral-8x7B": (
        GQA
        | {
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_local_experts": 8,
            "vocab_size": 32000,
        },
        46_702_792_704,
    ),
    "Qwen/Qwen3-30B-A3B": (
        {
            "decoder_sparse_step": 1,
            "head_dim": 128,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "mlp_only_layers": [],
            "moe_intermediate_size": 768,
            "num_attention_heads": 32,
            "num_experts": 128,
            "num_hidden_layers": 48,
            "num_key_value_heads": 4,
            "vocab_size": 151936,
        },
        30_532_122_624,
    ),
    "Qwen/Qwen2-57B-A14B": (
        {
            "decoder_sparse_step": 1,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "moe_intermediate_size": 2560,
            "num_attention_heads": 28,
            "num_experts": 64,
            "num_hidden_layers": 28,
            "num_key_value_heads": 4,
            "shared_expert_intermediate_size": 20480,
            "vocab_size": 151936,
        },
        57_409_011_200,
    ),
    "deepseek-ai/DeepSeek-V2-Lite": (
        MLA
        | {
            "first_k_dense_replace": 1,
            "hidden_size": 2048,
            "intermediate_size": 10944,
            "moe_intermediate_size": 1408,
            "moe_layer_freq": 1,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "num_key_value_heads": 16,
            "q_lora_rank": None,
            "vocab_size": 102400,
        },
        15_706_484_224,
    ),
    "deepseek-ai/DeepSeek-V3": (
        MLA
        | {
            "first_k_dense_replace": 3,
            "hidden_size": 7168,
            "intermediate_size": 18432,
            "moe_intermediate_size": 2048,
            "moe_layer_freq": 1,
            "n_routed_experts": 256,
            "n_shared_experts": 1,
            "num_attention_heads": 128,
            "num_hidden_layers": 61,
            "num_key_value_heads": 128,
            "q_lora_rank": 1536,
            "vocab_size": 129280,
        },
        671_026_419_200,
    ),
    "openai/gpt-oss-120b": (
        {
            "head_dim": 64,
            "hidden_size": 2880,
            "intermediate_size": 2880,
            "num_attention_heads": 64,
            "num_hidden_layers": 36,
            "num_key_value_heads": 8,
            "num_local_experts": 128,
            "vocab_size": 201088,
        },
        116_829_156_672,
    ),
}


def dense(**changes: Any) -> ModelShape:
    config = GQA | {"intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 32000}
    return shape_of("m", config | changes)


@pytest.mark.parametrize("name", REAL)
def test_counted_weights_are_those_of_the_model_card(name: str) -> None:
    config, parameters = REAL[name]
    # Biases and norms are not counted.
    assert shape_of(name, config).weight_bytes == pytest.approx(2 * parameters, rel=0.003)


def test_the_default_model() -> None:
    shape = load_shape("Qwen/Qwen2.5-7B-Instruct")
    assert (shape.heads, shape.kv_heads, shape.head_dim, shape.layers) == (28, 4, 128, 28)
    assert (shape.hidden_size, shape.intermediate_size) == (3584, 18944)
    assert (shape.vocab_size, shape.max_positions) == (152064, 32768)
    assert shape.kv_bytes_per_token == 2 * 28 * 4 * 128 * 2
    assert [tp for tp in range(1, 9) if shape.why_not_tp(tp) is None] == [1, 2, 4]


def test_the_embedded_model_is_the_one_that_splits_by_three() -> None:
    shape = load_shape(EMBEDDED)
    assert [tp for tp in range(1, 9) if shape.why_not_tp(tp) is None] == [1, 3]
    assert shape.tied_embeddings
    assert shape.kv_bytes_per_token == 23040


@pytest.mark.parametrize(
    ("changes", "tp", "reason"),
    [
        ({}, 8, None),
        # TP is a multiple of the KV heads: SGLang copies them.
        ({}, 16, None),
        ({}, 3, "32 attention heads do not divide by 3"),
        (
            {"num_attention_heads": 24, "num_key_value_heads": 6},
            4,
            "6 KV heads and TP 4 do not divide each other",
        ),
        ({"intermediate_size": 14334}, 4, "MLP width 14334 does not divide by 4"),
        (
            {"num_experts": 8, "moe_intermediate_size": 770},
            4,
            "expert width 770 does not divide by 4",
        ),
        (
            {
                "num_experts": 8,
                "moe_intermediate_size": 768,
                "shared_expert_intermediate_size": 770,
            },
            4,
            "shared expert width 770 does not divide by 4",
        ),
        # Nowhere a dense layer: its width is of no account.
        (
            {"num_experts": 8, "moe_intermediate_size": 768, "intermediate_size": 7},
            4,
            None,
        ),
        (
            {
                "num_experts": 8,
                "moe_intermediate_size": 768,
                "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
            },
            4,
            "expert width 768 / 4 is no multiple of the FP8 block 128",
        ),
        # One latent head, held whole by every rank.
        (MLA | {"num_attention_heads": 24, "num_key_value_heads": 24}, 3, "MLP width 14336 does"),
        (MLA | {"num_attention_heads": 24, "intermediate_size": 14400}, 3, None),
    ],
)
def test_which_tp_splits_a_model(changes: dict[str, Any], tp: int, reason: str | None) -> None:
    found = dense(**changes).why_not_tp(tp)
    assert (found is None) if reason is None else (found or "").startswith(reason)


def test_a_latent_model_keeps_one_small_entry_a_token() -> None:
    shape = dense(**MLA)
    assert shape.is_mla
    assert shape.kv_bytes_per_token == 32 * (512 + 64) * 2


@pytest.mark.parametrize(
    ("quantization", "bytes_per_weight"),
    [
        (None, 2.0),
        ({"quant_method": "fp8"}, 1.0),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 4.25 / 8),
        ({"quant_method": "gptq", "bits": 8}, 1.0),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8}}},
            },
            1.0,
        ),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 4.25 / 8),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4.25 / 8),
    ],
)
def test_quantized_weights_are_smaller_but_not_the_embedding(
    quantization: dict[str, Any] | None, bytes_per_weight: float
) -> None:
    shape = dense(quantization_config=quantization)
    embedding = 2 * 32000 * 4096
    linear = dense().weight_bytes / 2 - embedding
    assert shape.weight_bytes == round(embedding * 2 + linear * bytes_per_weight)


def test_mxfp4_quantizes_the_experts_alone() -> None:
    config, _ = REAL["openai/gpt-oss-120b"]
    shape = shape_of("m", config | {"quantization_config": {"quant_method": "mxfp4"}})
    assert shape.weight_bytes == pytest.approx(65_248_815_744, rel=0.02)


@pytest.mark.parametrize("part", ["text_config", "llm_config"])
def test_the_language_part_of_a_multimodal_model_counts(part: str) -> None:
    config = {"architectures": ["VL"], part: CONFIGS[DEFAULT] | {"architectures": ["Text"]}}
    shape = shape_of("vl", config)
    assert (shape.architectures, shape.heads) == (("VL",), 28)


@pytest.mark.parametrize(
    ("changes", "sparse"),
    [
        ({}, 5),
        ({"decoder_sparse_step": 2}, 2),  # layers 1 and 3
        ({"mlp_only_layers": [0, 4]}, 3),
        ({"first_k_dense_replace": 3}, 2),
        ({"interleave_moe_layer_step": 5}, 1),
    ],
)
def test_which_layers_have_experts(changes: dict[str, Any], sparse: int) -> None:
    shape = dense(num_hidden_layers=5, num_experts=8, **changes)
    assert shape.experts is not None
    assert shape.experts.layers == sparse


def test_a_draft_with_a_small_vocabulary_has_a_small_head() -> None:
    # 358,758,400 weights in its file, which leaves the embedding out.
    draft = load_shape("thoughtworks/Qwen2.5-7B-Instruct-Eagle3")
    embedding = 152064 * 3584
    assert draft.weight_bytes == pytest.approx(2 * (358_758_400 + embedding), rel=0.1)


def test_llama4_names_its_widths_otherwise() -> None:
    shape = dense(
        num_local_experts=16,
        intermediate_size=8192,
        intermediate_size_mlp=16384,
        interleave_moe_layer_step=2,
    )
    assert shape.intermediate_size == 16384
    assert shape.experts is not None
    assert (shape.experts.width, shape.experts.shared_width, shape.experts.layers) == (
        8192,
        8192,
        16,
    )


def test_a_config_without_a_number_is_an_error() -> None:
    with pytest.raises(SettingsError, match=r"m: its config.json has no 'num_attention_heads'"):
        shape_of("m", {"hidden_size": 1})


@pytest.mark.parametrize("names", [{DEFAULT, EMBEDDED}, set(DRAFTS[DEFAULT].values())])
def test_known_models_need_no_hub(names: set[str]) -> None:
    def fetch(name: str) -> Path:
        raise AssertionError(name)

    assert {load_shape(name, fetch=fetch).name for name in names} == names


def folder(at: Path, **files: bytes) -> str:
    (at / "config.json").write_text(json.dumps(CONFIGS[EMBEDDED]))
    for name, content in files.items():
        (at / name.replace("_", ".", 1)).write_bytes(content)
    return str(at)


def test_a_directory_is_read_and_its_weights_are_those_on_disk(tmp_path: Path) -> None:
    assert load_shape(folder(tmp_path)).weight_bytes == pytest.approx(2 * 134.5e6, rel=0.003)
    assert load_shape(folder(tmp_path, a_bin=b"12345")).weight_bytes == 5
    both = folder(tmp_path, a_safetensors=b"1234", b_safetensors=b"123")
    assert load_shape(both).weight_bytes == 7
    index = b'{"metadata": {"total_size": 1234}}'
    (tmp_path / "model.safetensors.index.json").write_bytes(index)
    assert load_shape(both).weight_bytes == 1234


def test_a_hub_name_is_fetched(tmp_path: Path) -> None:
    asked: list[str] = []

    def fetch(name: str) -> Path:
        asked.append(name)
        return tmp_path / "config.json"

    folder(tmp_path)
    shape = load_shape("org/model", fetch=fetch)
    assert (shape.name, shape.heads, asked) == ("org/model", 9, ["org/model"])


def test_a_hub_that_fails_is_told_with_the_variable() -> None:
    def fetch(name: str) -> Path:
        raise OSError("401 Client Error")

    with pytest.raises(SettingsError) as caught:
        load_shape("org/model", "SPECULATIVE_DRAFT_MODEL_PATH", fetch)
    assert caught.value.message == (
        "SPECULATIVE_DRAFT_MODEL_PATH='org/model': 401 Client Error; wanted a directory with a"
        " config.json, or a Hugging Face name that the hub can give"
    )


def test_a_hub_that_never_answers_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, released = threading.Event(), threading.Event()

    def download(*_: object, **__: object) -> str:
        asked.set()
        released.wait()
        return ""

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(models, "HUB_TIMEOUT_S", 0.01)
    try:
        with pytest.raises(
            SettingsError, match=r"the Hugging Face hub did not answer within 0.01 s"
        ):
            load_shape("org/model")
        assert asked.wait(5)
    finally:
        released.set()


def test_a_model_in_the_hubs_cache_is_read_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = folder(tmp_path) + "/config.json"
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: config)
    assert load_shape("org/model").heads == 9


def test_what_the_hub_raises_is_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise ValueError("404 Client Error.\n\nRepository Not Found")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(SettingsError, match=r"404 Client Error. Repository Not Found; wanted"):
        load_shape("org/model")


@pytest.mark.parametrize("name", ["/no/such/folder", "./model", "../m", "~/m", "a/b/c", "a b"])
def test_a_path_that_is_not_there_is_no_hub_name(name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_shape(name)
    assert caught.value.message.startswith(f"MODEL_PATH={name!r}: no such directory; wanted")


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_config_that_is_no_object_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(SettingsError, match=r"^MODEL_PATH="):
        load_shape(str(tmp_path))


def test_a_directory_without_a_config_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"wanted a directory with a config.json"):
        load_shape(str(tmp_path))


def test_the_model_to_serve() -> None:
    unset, own = Settings.from_env({}), Settings.from_kwargs(model_path="org/m")
    assert model_of(unset, "cuda") == DEFAULT
    assert model_of(unset, "cpu") == EMBEDDED
    assert model_of(own, "cuda") == model_of(own, "cpu") == "org/m"
