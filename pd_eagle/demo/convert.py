"""Turns the embedded model's GGUF file into a folder that SGLang loads; a program, run in a
process of its own because torch and transformers start threads.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from pd_eagle.demo import NAME


def convert(gguf: Path, target: Path) -> None:
    """Write weights (bfloat16), config, tokenizer, chat template and model card to `target`."""
    _say("importing transformers")
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    _say("reading the tokenizer")
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    transformers.AutoTokenizer.from_pretrained(**source).save_pretrained(target)
    _say("dequantizing the weights to bfloat16")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        **source,
        dtype=torch.bfloat16,
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    # Else SGLang 0.5.23 would look for quantized weights.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    _say("writing the weights")
    model.save_pretrained(target)
    shutil.copy(Path(__file__).with_name("MODEL_CARD.md"), target / "README.md")


def _say(step: str) -> None:
    sys.stdout.write(f"{NAME}: {step}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
