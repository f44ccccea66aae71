"""What the CPU platform cannot run is refused before the start, by name and with the reason."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pd_eagle.errors import PlanRefused
from pd_eagle.plan import cpu_families, devices, engine_args
from pd_eagle.plan.config import Settings
from pd_eagle.plan.deployment import outline
from pd_eagle.plan.known_models import CONFIGS, EMBEDDED

if TYPE_CHECKING:
    from pathlib import Path

    from pd_eagle.plan.deployment import Outline

Json = dict[str, Any]

SIZES: Json = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 256,
}
MLA: Json = {"kv_lora_rank": 32, "qk_rope_head_dim": 8}


def config(architecture: str | None, **more: Any) -> Json:
    names = {} if architecture is None else {"architectures": [architecture]}
    return names | SIZES | more


def planned(tmp_path: Path, said: Json, draft: Json | None = None, **settings: Any) -> Outline:
    """Return what `pd-eagle plan` makes of a model with this config.json on the CPU."""
    where = {"model": said} | ({"draft": draft} if draft else {})
    for name, content in where.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(content))
    if draft:
        settings["speculative_draft_model_path"] = str(tmp_path / "draft")
    made = Settings.from_kwargs(model_path=str(tmp_path / "model"), **settings)
    return outline(made, devices.parse_gpus("cpu"), {"nixl"})


@pytest.mark.parametrize("architecture", cpu_families.FAMILIES)
def test_what_was_tested_is_planned(tmp_path: Path, architecture: str) -> None:
    assert planned(tmp_path, config(architecture), pd_mode="on").plan.mode == "pd"


def test_the_models_known_by_name_are_planned() -> None:
    assert cpu_families.why_not(CONFIGS[EMBEDDED]) is None
    assert cpu_families.why_not(CONFIGS["Qwen/Qwen2.5-7B-Instruct"], "EAGLE") is None


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (config("DeepseekV2ForCausalLM", **MLA), "multi-head latent attention"),
        (config("DeepseekV3ForCausalLM", **MLA), "multi-head latent attention"),
        (config("Qwen2VLForConditionalGeneration", vision_config={"depth": 2}), "takes images"),
        (config("LlavaForConditionalGeneration", vision_config={"a": 1}), "takes images"),
        (config("LlavaLlamaForCausalLM"), "takes images"),
        (config("Gemma3ForConditionalGeneration", vision_config={"a": 1}), "takes images"),
        ({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, "encoder"),
        (config("WhisperForConditionalGeneration", is_encoder_decoder=True), "encoder"),
        (config("LlamaForSequenceClassification"), "scores or embeddings"),
        (config("Qwen2ForRewardModel"), "scores or embeddings"),
        (config("LlamaEmbeddingModel"), "scores or embeddings"),
        (config("BertModel"), "scores or embeddings"),
        (config("Qwen3Model"), "no head that makes text"),
        (config("MambaForCausalLM", state_size=16), "recurrent layers"),
        (config("Qwen3NextForCausalLM", linear_num_key_heads=4), "recurrent layers"),
        (config("GptOssForCausalLM"), "was not tested on the CPU"),
        (config("NobodyKnowsForCausalLM"), "was not tested on the CPU"),
        (config(None), "no architectures"),
        (config("Qwen2ForCausalLM", quantization_config={"quant_method": "gptq"}), "(gptq)"),
        (config("LlamaForCausalLM", quantization_config={"quant_method": "awq"}), "(awq)"),
        (config("Qwen3ForCausalLM", quantization_config={"quant_method": "fp8"}), "(fp8)"),
        (
            config("LlamaForCausalLM", compression_config={"format": "x"}),
            "quantized weights (unknown)",
        ),
        (config("LlamaForCausalLM", rope_scaling={"type": "dynamic", "factor": 2}), "'dynamic'"),
        (config("LlamaForCausalLM", rope_parameters={"rope_type": "dynamic"}), "'dynamic'"),
        (config("Phi3ForCausalLM", rope_scaling={"type": "longrope"}), "'longrope'"),
        (config("Phi3ForCausalLM", partial_rotary_factor=0.75), "partial_rotary_factor=0.75"),
        (
            config("Phi3ForCausalLM", rope_parameters={"partial_rotary_factor": 0.5}),
            "partial_rotary_factor=0.5",
        ),
        (
            config("Gemma3ForCausalLM", rope_parameters={"full": {"rope_type": "yarn"}}),
            "'yarn'",
        ),
        (config("LlamaForCausalLM", mlp_bias=True), "mlp_bias=True"),
        (config("LlamaForCausalLM", hidden_act="gelu"), "hidden_act='gelu'"),
        (config("Qwen3MoeForCausalLM", mlp_only_layers=[0]), "mlp_only_layers=[0]"),
        (config("Qwen2MoeForCausalLM", decoder_sparse_step=2), "decoder_sparse_step=2"),
        (config("Gemma3ForCausalLM", use_bidirectional_attention=True), "bidirectional"),
        (config("CohereForCausalLM", attention_bias=True), "attention_bias=True"),
        (config("GPT2LMHeadModel", tie_word_embeddings=False), "tie_word_embeddings=False"),
        (
            config("LlamaForCausalLM", rope_scaling={"type": "yarn", "attention_factor": 1.3}),
            "attention_factor=1.3",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cannot_run_is_refused(tmp_path: Path, said: Json, reason: str) -> None:
    with pytest.raises(PlanRefused) as caught:
        planned(tmp_path, said)
    message = caught.value.message
    assert message.startswith(f"MODEL_PATH='{tmp_path / 'model'}': ")
    assert reason in message
    assert said.get("architectures", ["no architectures"])[0] in message
    assert "CPU_UNTESTED_MODELS=true" in message


@pytest.mark.parametrize("rope", [{}, {"rope_scaling": None}, {"rope_parameters": {"factor": 1}}])
def test_no_rope_scaling_is_none(rope: Json) -> None:
    assert cpu_families.why_not(config("Phi3ForCausalLM", **rope)) is None


def test_one_who_wants_to_try_is_let_and_told(tmp_path: Path) -> None:
    found = planned(tmp_path, config("NobodyKnowsForCausalLM"), cpu_untested_models=True)
    assert "NobodyKnowsForCausalLM was not tested on the CPU" in str(found.plan)


def test_gpus_are_asked_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config("GptOssForCausalLM")))
    settings = Settings.from_kwargs(model_path=str(tmp_path))
    assert outline(settings, devices.parse_gpus("1xH100"), {"nixl"}).plan.kind == "cuda"


def test_weights_quantized_by_modelopt_are_seen(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config("LlamaForCausalLM")))
    (tmp_path / "hf_quant_config.json").write_text("{}")
    settings = Settings.from_kwargs(model_path=str(tmp_path))
    with pytest.raises(PlanRefused, match="modelopt"):
        outline(settings, devices.parse_gpus("cpu"), {"nixl"})


LLAMA_DRAFT = config("LlamaForCausalLMEagle")


def test_a_draft_needs_a_target_that_sglang_lets_drafts_into(tmp_path: Path) -> None:
    with pytest.raises(PlanRefused, match="SGLang has no EAGLE for Gemma2ForCausalLM"):
        planned(tmp_path, config("Gemma2ForCausalLM"), LLAMA_DRAFT, speculative_algorithm="EAGLE")


def test_an_eagle3_draft_needs_more_of_its_target(tmp_path: Path) -> None:
    draft = config("LlamaForCausalLMEagle3")
    with pytest.raises(PlanRefused, match="SGLang has no EAGLE3 for Glm4ForCausalLM"):
        planned(tmp_path, config("Glm4ForCausalLM"), draft, speculative_algorithm="EAGLE3")


def test_a_draft_of_a_refused_target_is_refused_with_it(tmp_path: Path) -> None:
    with pytest.raises(PlanRefused, match=r"MODEL_PATH.*GptOssForCausalLM"):
        planned(tmp_path, config("GptOssForCausalLM"), LLAMA_DRAFT, speculative_algorithm="EAGLE")


@pytest.mark.parametrize(
    ("draft", "reason"),
    [
        (config("DeepseekV3ForCausalLMNextN"), "cannot draft with DeepseekV3ForCausalLMNextN"),
        (config(None), "no architectures"),
        (LLAMA_DRAFT | {"quantization_config": {"quant_method": "fp8"}}, "(fp8)"),
    ],
)
def test_a_draft_that_cannot_run_is_refused(tmp_path: Path, draft: Json, reason: str) -> None:
    with pytest.raises(PlanRefused) as caught:
        planned(tmp_path, config("Qwen2ForCausalLM"), draft, speculative_algorithm="EAGLE")
    assert caught.value.message.startswith("SPECULATIVE_DRAFT_MODEL_PATH='")
    assert reason in caught.value.message


def test_a_tested_draft_is_planned(tmp_path: Path) -> None:
    found = planned(
        tmp_path, config("Qwen2ForCausalLM"), LLAMA_DRAFT, speculative_algorithm="EAGLE"
    )
    assert found.draft == str(tmp_path / "draft")


def test_gpt2_has_other_names_for_its_sizes(tmp_path: Path) -> None:
    gpt2 = {
        "architectures": ["GPT2LMHeadModel"],
        **{"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512, "vocab_size": 256},
        "n_inner": None,
    }
    shape = planned(tmp_path, gpt2).shape
    assert (shape.hidden_size, shape.layers, shape.heads, shape.kv_heads) == (64, 2, 4, 4)
    assert (shape.intermediate_size, shape.max_positions) == (256, 512)


def test_sglang_is_told_gemma2s_activation_by_both_names(tmp_path: Path) -> None:
    said = config("Gemma2ForCausalLM", hidden_activation="gelu_pytorch_tanh")
    told = planned(tmp_path, said).model_args
    assert json.loads(told["json_model_override_args"]) == {"hidden_act": "gelu_pytorch_tanh"}
    assert engine_args.of_model(said | {"hidden_act": "gelu_pytorch_tanh"}) == {}
    assert engine_args.of_model(config("Qwen2ForCausalLM", hidden_activation="silu")) == {}
