"""The object that SGLang's serving classes use as their tokenizer manager, over the service.

It knows nothing of routes, and nothing of an API's requests.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.function_call.function_call_parser import FunctionCallParser
from sglang.srt.runtime_context import publish
from sglang.srt.server_args import ServerArgs

from pd_eagle.errors import SettingsError
from pd_eagle.plan import tool_parsers
from pd_eagle.requests.generate_api import GenerateApi
from pd_eagle.requests.text_length import refuse_too_long
from pd_eagle.workers.engine import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sglang.srt.parser.template_manager import TemplateManager

    from pd_eagle.plan.tool_parsers import ToolParser
    from pd_eagle.requests.service import Service

logger = logging.getLogger(__name__)


class TokenizerManager(GenerateApi):
    """What SGLang's serving classes (0.5.23) use of its tokenizer manager, over the service."""

    def __init__(self, service: Service, engine_args: Mapping[str, Any]) -> None:
        self.server_args = ServerArgs(**engine_args)
        self.server_args.resolve_once()
        publish(self.server_args, role="tokenizer")
        self.model_path: str = self.server_args.model_path
        self.served_model_name: str = self.server_args.served_model_name or self.model_path
        self.model_config = ModelConfig.from_server_args(self.server_args)
        self.processor = None
        self._tool_parser = tool_parsers.ToolParser(None, "not chosen yet")
        self.request_logger = _NoRequestLog()
        tokenizer = load_tokenizer(engine_args)
        _count_rendered(tokenizer, self.model_config.context_len)
        super().__init__(service, tokenizer, incremental=True, one_id=True)

    def config_value(self, name: str) -> Any:
        if name == "tool_call_parser":
            return self._tool_parser.name
        return getattr(self.server_args, name)

    def choose_tool_parser(self, templates: TemplateManager) -> ToolParser:
        """Choose the parser of tool calls; log it. Raises `SettingsError` for an unknown name."""
        asked = self.server_args.tool_call_parser
        known = FunctionCallParser.ToolCallParserEnum
        if asked not in (None, "auto", *known):
            raise SettingsError(
                f"TOOL_CALL_PARSER={asked!r}: wanted auto or one of {', '.join(known)}"
            )
        suggested = templates.suggested_tool_call_parser
        template = getattr(self.tokenizer, "chat_template", None)
        self._tool_parser = tool_parsers.choose(asked, suggested, template)
        found = self._tool_parser
        logger.info("parser of tool calls: %s (%s)", found.name or "none", found.reason)
        return found

    def create_abort_task(self, obj: object) -> None:
        """Nothing to do: closing `generate_request` aborts."""

    async def _handle_abort_finish_reason(self, *_: object) -> None:
        """Aborts never reach this side as results: they are raised as errors."""


def _count_rendered(tokenizer: Any, context_length: int) -> None:
    """Make the chat template refuse a prompt that is too long before SGLang (0.5.23) tokenizes it.

    `encode` is not wrapped: SGLang tokenizes in parallel only with the tokenizer's own `encode`.
    """
    render = tokenizer.apply_chat_template

    def render_what_may_fit(*args: Any, **options: Any) -> Any:
        rendered = render(*args, **options)
        if isinstance(rendered, str):
            refuse_too_long(tokenizer, rendered, context_length)
        return rendered

    tokenizer.apply_chat_template = render_what_may_fit


class _NoRequestLog:
    log_requests = False
    log_requests_level = 0
