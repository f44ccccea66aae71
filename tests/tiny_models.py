"""Makes tiny Llama-style models and EAGLE drafts for them, on disk, in seconds; random weights,
a tokenizer whose words are its token ids; knows nothing of engines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from pathlib import Path

END = "<end>"


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

    The weights are large enough for greedy answers to wander instead of repeating one token.
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
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(path)
    _tokenizer(vocab).save_pretrained(path)
    return path


def _tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    words = {END: 0} | {f"w{i}": i for i in range(1, vocab)}
    tokenizer = Tokenizer(WordLevel(words, unk_token=END))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END)
    fast.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    return fast
