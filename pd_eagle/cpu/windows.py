"""The attention window of each layer of a model, from its config as transformers reads it; knows
nothing of engines.

SGLang 0.5.23 ignores the sliding windows of Mistral, Mixtral, Phi-3, Qwen 2, Qwen 3 and
StarCoder 2: beyond the window their output would be wrong.
"""

from __future__ import annotations

from typing import Any


def windows_of(model_config: Any) -> tuple[int, ...]:
    """Return for each layer of an SGLang `ModelConfig` how many positions back a query sees.

    -1 means all. Empty where transformers knows no window for this kind of model; then a
    `sliding_window` that stands in its config.json all the same means nothing.
    """
    config = model_config.hf_text_config
    if not hasattr(type(config), "sliding_window"):
        return ()
    # transformers counts the query's own position too.
    window = (config.sliding_window or 0) - 1
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else -1 for kind in types)
