"""One plan that runs in this process for `pd-eagle tune`: its engines and its service, no HTTP.

Requests go into the service from the front's own loop, as the server's handlers send them: passing
every token to another thread would cost more than serving it. It has no tokenizer, and does not
know what is measured.
"""

from __future__ import annotations

import os
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from pd_eagle.front import spawn_zygote
from pd_eagle.front_thread import FrontThread
from pd_eagle.plan import deployment as deployments
from pd_eagle.plan.config import Settings

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping
    from types import TracebackType

    from pd_eagle.plan.deployment import Deployment
    from pd_eagle.requests.service import Service
    from pd_eagle.workers.zygote import ZygoteProcess


@dataclass(frozen=True, slots=True)
class Prepared:
    """A plan whose processes import SGLang already, before it is started or discarded."""

    deployment: Deployment
    zygote: ZygoteProcess | None

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Self:
        """Decide the plan for these settings. Raises `SettingsError`, `PlanRefused`."""
        deployment = deployments.decide(Settings.from_env(environ), os.environ)
        return cls(deployment, None if deployment.fork_refusal else spawn_zygote(deployment))

    def discard(self) -> None:
        if self.zygote is not None:
            self.zygote.discard()


class RunningPlan:
    """Every engine of one plan; use it as a context manager, or call `stop`."""

    def __init__(self, prepared: Prepared, start_timeout_s: float) -> None:
        """Start every engine; returns when a token has gone through every pair.

        Raises `StartFailed`, also where that takes longer than `start_timeout_s`; then nothing is
        left of it.
        """
        api: Future[_NoText] = Future()
        deployment = _limited(prepared.deployment, start_timeout_s)
        self._thread = FrontThread(deployment, api, prepared.zygote)
        try:
            self._thread.call(self._thread.front.start())
        except BaseException:
            self.stop()
            raise
        api.set_result(_NoText())

    @property
    def service(self) -> Service:
        """The service, for coroutines that `call` runs."""
        return self._thread.front.service

    def call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run `coroutine` in the front's loop and return its result."""
        return self._thread.call(coroutine)

    def stop(self) -> None:
        self._thread.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


class _NoText:
    """In the place of the layer that reads and writes text: requests are token ids here."""

    tool_call_parser = None

    def detokenize(self, ids: list[int], /) -> str:
        """Return nothing for the text of a resumed answer: nobody reads it."""
        return ""


def _limited(deployment: Deployment, start_timeout_s: float) -> Deployment:
    limit_s = min(deployment.settings.start_timeout_s, start_timeout_s)
    settings = replace(deployment.settings, start_timeout_s=limit_s)
    return replace(deployment, outline=replace(deployment.outline, settings=settings))
