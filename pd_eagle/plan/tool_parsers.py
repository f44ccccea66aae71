"""Chooses SGLang's parser of a model's tool calls.

By the setting, by the model's architecture, by SGLang's own rules on the chat template, or by the
rules here, for families for which SGLang 0.5.23 has a parser but no rule. It knows the parsers'
names, not how they parse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

VARIABLE = "TOOL_CALL_PARSER"

#: Families with a single format of tool calls, or without a chat template that shows it. Engines
#: get these too: SGLang's detokenizer keeps gpt-oss's end-of-call token only if that parser is set.
BY_ARCHITECTURE: Mapping[str, str] = {
    "GptOssForCausalLM": "gpt-oss",
    "DeepseekV32ForCausalLM": "deepseekv32",
    "DeepseekV4ForCausalLM": "deepseekv4",
    "MiniMaxM2ForCausalLM": "minimax-m2",
}

#: Parser, and the texts that a chat template for it contains. The first match counts; SGLang's own
#: rules come first.
BY_TEMPLATE: tuple[tuple[str, tuple[str, ...]], ...] = (
    # Llama 4
    ("pythonic", ("tools", "func_name1(params_name1=")),
    # Llama 3.1, 3.2, 3.3
    ("llama3", ("tools", "<|start_header_id|>", '"parameters": dictionary of argument name')),
    ("llama3", ("tools", "<|python_tag|>")),
    ("cohere_command4", ("tools", "<|START_ACTION|>")),
    ("dots", ("tools", "<dots_function_call>")),
    ("gigachat3", ("tools", "function call<|role_sep|>")),
    # Qwen 2.5, QwQ, and Qwen 3 without a switch for thinking
    ("qwen", ("tools", "<|im_start|>", "<tool_call>", "<args-json-object>")),
    # Hermes 2 and 3, and models with the same format
    ("hermes", ("tools", "<tool_call>", "<args-dict>")),
    ("hermes", ("tools", "<tool_call>", "{'name': ")),
)


@dataclass(frozen=True, slots=True)
class ToolParser:
    """A parser's name, None where none is known, and how it was found."""

    name: str | None
    reason: str


def of_architecture(architectures: Iterable[str]) -> str | None:
    """Return the parser that `architectures` of config.json determine, or None."""
    return next((BY_ARCHITECTURE[name] for name in architectures if name in BY_ARCHITECTURE), None)


def choose(asked: str | None, by_sglang: str | None, template: object) -> ToolParser:
    """Return the parser to use.

    `asked` is the engines' own argument, "auto" as in SGLang; `by_sglang` is what SGLang's rules
    find in the chat template, which is a text, several by name, or None.
    """
    if asked and asked != "auto":
        return ToolParser(asked, f"{VARIABLE}, or the model's architecture")
    text = _text(template)
    # SGLang's rules match some families by their reasoning format, even without tools.
    if by_sglang and (not text or "tool" in text):
        return ToolParser(by_sglang, "SGLang's rules find it in the chat template")
    for name, marks in BY_TEMPLATE:
        if all(mark in text for mark in marks):
            return ToolParser(name, f"the chat template has {marks[-1]!r}")
    if "tool" not in text:
        return ToolParser(None, "the chat template does not speak of tools")
    return ToolParser(None, "the chat template's form of tool calls is not known here")


def _text(template: object) -> str:
    if isinstance(template, dict):  # named templates, as of Hermes 3 and Command R
        return "\n".join(map(str, template.values()))
    return template if isinstance(template, str) else ""
