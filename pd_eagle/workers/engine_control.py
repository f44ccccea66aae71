"""What an SGLang engine can be told to do beside its requests, in the worker.

`sglang.Engine` runs its own event loop for each of these; here the loop is running already, so they
go to its tokenizer manager (0.5.23).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from pd_eagle.messages import ControlName


async def control(engine: Any, name: ControlName, arguments: dict[str, Any]) -> Any:
    """Call `engine`'s control `name`; return its result in JSON's types."""
    return await _CONTROLS[name](engine, **arguments)


async def _flush_cache(engine: Any, timeout_s: float | None = None) -> dict[str, Any]:
    result = await engine.tokenizer_manager.flush_cache(timeout_s)
    return {"success": result.success, "message": result.message}


async def _get_server_info(engine: Any) -> Any:
    from sglang.srt.sampling.watermarking.core import redact_watermark_secrets
    from sglang.srt.utils.msgspec_utils import msgspec_to_builtins
    from sglang.version import __version__

    manager = engine.tokenizer_manager
    arguments = manager.server_args.resolved_dict()
    secrets = {name: arguments[name] for name in _SECRETS if arguments.get(name) is not None}
    info = {
        **arguments,
        **dict.fromkeys(secrets, "***"),
        **engine._scheduler_init_result.scheduler_infos[0],
        "launch_command": _without(secrets, manager.server_args.launch_command),
        "startup_time": manager.startup_time,
        "internal_states": await manager.get_internal_state(),
        "version": __version__,
    }
    # Among the arguments may be functions.
    return msgspec.to_builtins(msgspec_to_builtins(redact_watermark_secrets(info)), enc_hook=str)


#: SGLang 0.5.23 shows these in the clear.
_SECRETS = ("api_key", "admin_api_key", "ssl_keyfile_password")


def _without(secrets: Mapping[str, str], text: str | None) -> str | None:
    for secret in secrets.values():
        text = text and text.replace(secret, "***")
    return text


async def _start_profile(engine: Any, **options: Any) -> None:
    from sglang.srt.managers.io_struct import ProfileReq

    await engine.tokenizer_manager.start_profile(ProfileReq(**options))


async def _stop_profile(engine: Any) -> None:
    await engine.tokenizer_manager.stop_profile()


_CONTROLS: dict[ControlName, Callable[..., Awaitable[Any]]] = {
    "flush_cache": _flush_cache,
    "get_server_info": _get_server_info,
    "start_profile": _start_profile,
    "stop_profile": _stop_profile,
}


def score_mixin(engine_args: Mapping[str, Any]) -> Any:
    """Return SGLang's class that scores, for an object with a tokenizer and `generate_request`.

    It reads the configuration of its process, so the front's is published where there is none.
    """
    from sglang.srt.managers.tokenizer_manager_score_mixin import TokenizerManagerScoreMixin
    from sglang.srt.runtime_context import publish, publish_role
    from sglang.srt.server_args import ServerArgs

    if publish_role() is None:
        arguments = ServerArgs(**engine_args)
        arguments.resolve_once()
        publish(arguments, role="tokenizer")
    return TokenizerManagerScoreMixin
