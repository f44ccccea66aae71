"""A server whose model is told of tools: the embedded model with Qwen 2.5's chat template."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

from pd_eagle import demo
from tests.engine.serving import ServerProcess

if TYPE_CHECKING:
    from pathlib import Path

# Qwen 2.5's, without what only other turns of a conversation need.
TEMPLATE = r"""
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {{- "You are a helpful assistant.\n\n# Tools\n\nYou may call one or more functions to assist" }}
    {{- " with the user query.\n\nYou are provided with function signatures within" }}
    {{- " <tools></tools> XML tags:\n<tools>" }}
    {%- for tool in tools %}{{- "\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\n</tools>\n\nFor each function call, return a json object with function name and" }}
    {{- " arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\":" }}
    {{- " <function-name>, \"arguments\": <args-json-object>}\n</tool_call><|im_end|>\n" }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + (message.content or '') }}
    {%- for call in message.tool_calls or [] %}
        {{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
        {{- call.function.arguments | tojson + '}\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""
#: The least that is EAGLE: on a CPU every guess costs as much as a token.
EAGLE = {
    "SPECULATIVE_ALGORITHM": "EAGLE",
    "SPECULATIVE_DRAFT_MODEL_PATH": str(demo.DRAFT),
    "SPECULATIVE_NUM_STEPS": "1",
    "SPECULATIVE_EAGLE_TOPK": "1",
    "SPECULATIVE_NUM_DRAFT_TOKENS": "2",
}


def qwen_like_server(folder: Path, **settings: str) -> ServerProcess:
    """Return a server over PD and EAGLE, with a `min_p` of its own that EAGLE does not read."""
    model = folder / "model"
    shutil.copytree(demo.model_dir(), model, ignore=shutil.ignore_patterns("manifest.json"))
    (model / "chat_template.jinja").write_text(TEMPLATE)
    generation = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps(generation | {"min_p": 0.05}))
    # A CPU without bfloat16 takes eight times as long for a prompt in it.
    config = json.loads((model / "config.json").read_text())
    names = {"torch_dtype", "dtype"} & config.keys()
    (model / "config.json").write_text(json.dumps(config | dict.fromkeys(names, "float32")))
    named = {"MODEL_PATH": str(model), "SERVED_MODEL_NAME": "qwen-like", "DEVICE": "cpu"}
    always = named | EAGLE | {"PD_MODE": "on", "HANG_TIMEOUT_S": "120"}
    return ServerProcess(folder / "server.log", **always | settings)
