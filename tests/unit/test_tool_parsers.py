"""Which parser of tool calls a model gets, by pieces of the families' own chat templates."""

from __future__ import annotations

import pytest

from pd_eagle.plan import tool_parsers
from pd_eagle.plan.tool_parsers import ToolParser, choose

# As in each family's tokenizer_config.json or chat_template.jinja, cut to what tells of tools.
QWEN_25 = (
    "{%- if tools %}{{- '<|im_start|>system\\n' }}{{- \"\\n\\nFor each function call, return a "
    "json object with function name and arguments within <tool_call></tool_call> XML tags:\\n"
    '<tool_call>\\n{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}\\n'
    '</tool_call><|im_end|>\\n" }}{%- endif %}'
)
HERMES_3 = (
    "{{ bos_token + '<|im_start|>system\\nYou are a function calling AI model.' }}{%- for tool in "
    'tools %}... <tool_call>\\n{\\"name\\": <function-name>, \\"arguments\\": <args-dict>}\\n'
    "</tool_call>{%- endfor %}"
)
LLAMA_32 = (
    "{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}"
    '{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}'
    '{{- \'Respond in the format {"name": function name, "parameters": dictionary of argument name '
    "and its value}.' }}"
)
LLAMA_31 = '{%- if builtin_tools is defined %}{{- "<|python_tag|>" + tool_call.name }}{%- endif %}'
LLAMA_4 = "{{- '[func_name1(params_name1=params_value1, params_name2=params_value2)]' }}{{ tools }}"
COMMAND_R7B = {"default": "{{ messages }}", "tool_use": "{% if tools %}<|START_ACTION|>{% endif %}"}
SMOLLM2 = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}"
)
PHI_4 = "{{ '<|system|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' }}"


@pytest.mark.parametrize(
    ("template", "parser"),
    [
        (QWEN_25, "qwen"),
        (QWEN_25.replace("\\", ""), "qwen"),
        (HERMES_3, "hermes"),
        (LLAMA_32, "llama3"),
        (LLAMA_31, "llama3"),
        (LLAMA_4, "pythonic"),
        (COMMAND_R7B, "cohere_command4"),
    ],
)
def test_a_family_that_sglang_has_no_rule_for(template: object, parser: str) -> None:
    found = choose(None, None, template)
    assert found.name == parser
    assert found.reason.startswith("the chat template has ")


def test_what_is_set_comes_first_and_then_what_sglang_finds() -> None:
    assert choose("mistral", "qwen", QWEN_25).name == "mistral"
    assert choose(None, "deepseekv3", QWEN_25).name == "deepseekv3"
    assert choose("auto", "deepseekv3", QWEN_25).name == "deepseekv3"
    assert choose("auto", None, QWEN_25).name == "qwen"
    assert choose(None, "kimi_k3", None).name == "kimi_k3"  # one of SGLang's own templates


def test_a_template_without_tools_has_none_whatever_it_is_like() -> None:
    reason = "the chat template does not speak of tools"
    assert choose(None, None, SMOLLM2) == ToolParser(None, reason)
    assert choose(None, "deepseekv3", SMOLLM2) == ToolParser(None, reason)
    assert choose(None, None, None) == ToolParser(None, reason)


def test_a_form_that_nobody_knows() -> None:
    assert choose(None, None, PHI_4).name is None
    assert "is not known here" in choose(None, None, PHI_4).reason


def test_an_architecture_with_one_form() -> None:
    assert tool_parsers.of_architecture(("GptOssForCausalLM",)) == "gpt-oss"
    assert tool_parsers.of_architecture(("Qwen2ForCausalLM",)) is None
