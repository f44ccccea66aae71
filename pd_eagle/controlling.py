"""What `sglang.Engine` offers beside answers, for all engines of a front in another thread.

It does not know how the front starts and ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from pd_eagle.front import Front
    from pd_eagle.front_thread import FrontThread
    from pd_eagle.messages import ControlName
    from pd_eagle.requests.generate_api import GenerateApi

#: A profile is written when it stops.
_PROFILE_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class FlushResult:
    """Whether every engine's prefix cache was emptied; `message` says which was not, and why."""

    success: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class TokenizerManager:
    """What scripts use of `sglang.Engine.tokenizer_manager`."""

    tokenizer: Any
    abort_request: Callable[..., None]


class Controlling:
    """The calls to the engines themselves. Each raises `EngineError` where an engine fails."""

    _thread: FrontThread
    _front: Front[Any]
    _api: GenerateApi

    @property
    def tokenizer_manager(self) -> TokenizerManager:
        """The tokenizer that reads prompts, as `tokenizer_manager.tokenizer`."""
        return TokenizerManager(self._api.tokenizer, self.abort_request)

    def flush_cache(self) -> FlushResult:
        """Empty every engine's prefix cache; none does while it has requests."""
        self._thread.check_usable()
        why = self._thread.call(self._front.operations.flush_cache(0.0))
        return FlushResult(why is None, why or "")

    def get_server_info(self) -> dict[str, Any]:
        """Return what `sglang.Engine.get_server_info` does, of an engine that generates.

        `internal_states` has an entry for each engine, those that generate first; `pd_eagle` is
        `health()`.
        """
        self._thread.check_usable()
        info = self._thread.call(self._front.operations.server_info())
        return {**info, "pd_eagle": self._front.health().as_json()}

    def get_model_info(self) -> dict[str, Any]:
        """Return what `sglang.Engine.get_model_info` does."""
        info = self.get_server_info()
        names = ("weight_version", "load_format", "reasoning_parser", "tool_call_parser")
        return {
            "model_path": info["model_path"],
            "served_model_name": info["served_model_name"],
            "is_generation": True,
            **{name: info[name] for name in (*names, "disaggregation_mode")},
        }

    def start_profile(self, **options: Any) -> None:
        """Profile every engine; `options` are those of SGLang's `ProfileReq`, as `output_dir`."""
        self._control("start_profile", _PROFILE_TIMEOUT_S, options)

    def stop_profile(self) -> None:
        """End the profile that `start_profile` began; the engines have written it then."""
        self._control("stop_profile", _PROFILE_TIMEOUT_S)

    def get_all_child_pids(self) -> list[int]:
        """Return the processes of all engines: hosts and schedulers."""
        self._thread.check_usable()
        return [pid for worker in self._front.service.workers for pid in worker.pids]

    def abort_request(self, rid: str = "", abort_all: bool = False) -> None:
        """End the requests that were given `rid`, or all; each says `abort` as finish reason.

        What they have answered so far is returned. Prompts of a batch that have not begun go on.
        """
        if rid or abort_all:
            self._thread.check_usable()
            self._thread.call(self._abort(None if abort_all else rid))

    async def _abort(self, rid: str | None) -> None:
        self._api.abort(rid)

    def _control(
        self, name: ControlName, timeout_s: float, arguments: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        self._thread.check_usable()
        fleet = self._front.service.fleet
        found: dict[str, Any] = self._thread.call(
            fleet.control(name, arguments, timeout_s=timeout_s)
        )
        return found
