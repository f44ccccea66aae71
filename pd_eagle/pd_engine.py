"""`PDEngine`: the drop-in for `sglang.Engine` in scripts and notebooks.

The engines run in child processes, the front in a thread of the caller's process, so that it works
with and without a running event loop. It knows no routes.
"""

from __future__ import annotations

import inspect
import os
import weakref
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Self

from pd_eagle import mounting
from pd_eagle.controlling import Controlling
from pd_eagle.front_thread import FrontThread
from pd_eagle.generating import Generating
from pd_eagle.plan import deployment as deployments
from pd_eagle.plan.config import Settings
from pd_eagle.plan.setting_groups import TABLE
from pd_eagle.requests.generate_api import GenerateApi
from pd_eagle.scoring import Scoring
from pd_eagle.unsupported import UNSUPPORTED, Unsupported
from pd_eagle.workers.engine import generate_input_class, load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Unpack

    from starlette.types import ASGIApp

    from pd_eagle.call_types import EngineArguments
    from pd_eagle.plan.placement import Plan

#: Settings that bound the queue; unset, `PDEngine`'s own calls wait for each other.
_QUEUE_LIMITS = ("max_queue", "queue_timeout_s")


class PDEngine(Generating, Scoring, Controlling, Unsupported):
    """SGLang engines for prefill and decode behind the calls of `sglang.Engine`.

    Keyword arguments are the settings' names in lower case (`pd-eagle serve --help` lists them), or
    those of `sglang.Engine`, which go to every engine; `plan` says what runs where, and why. Use it
    as a context manager, or call `shutdown()`.
    """

    def __init__(self, **arguments: Unpack[EngineArguments]) -> None:
        """Start every engine; returns when a token has gone through every pair.

        Raises `SettingsError`, `PlanRefused` or `StartFailed`; then nothing is left of it.
        """
        deployment = deployments.decide(Settings.from_kwargs(**arguments), os.environ)
        self.plan: Plan = deployment.plan
        api: Future[GenerateApi] = Future()
        self._thread = FrontThread(deployment, api)
        # Dropping the last reference, or running a notebook's cell again, ends the engines.
        weakref.finalize(self, self._thread.abandon).atexit = False  # the thread sees to that
        self._front = self._thread.front
        starting = self._thread.submit(self._front.start())
        try:
            tokenizer = load_tokenizer(deployment.front_args())
            self._input_class = generate_input_class()
            starting.result()
        except BaseException:
            starting.cancel()
            self.shutdown()  # else the traceback of the error would keep the engines alive
            raise
        waits = arguments.keys().isdisjoint(_QUEUE_LIMITS)
        self._api = GenerateApi(self._front.service, tokenizer, incremental=False, patient=waits)
        api.set_result(self._api)

    def asgi(self) -> ASGIApp:
        """Return the server's HTTP application, to mount in FastAPI or Starlette: all its routes.

        It may run in any event loop, and keeps the engine. Loads SGLang's serving classes: seconds.
        """
        self._thread.check_usable()
        return mounting.application(self._front, self._thread, self)

    def health(self) -> dict[str, Any]:
        """Return what `/health` of the server returns."""
        self._thread.check_process()
        return self._front.health().as_json()

    def shutdown(self, drain: float | bool = False) -> bool:
        """Stop every engine; a second call does nothing. False if requests were cut off.

        `drain` is how many seconds running requests may go on; True takes `drain_timeout_s`.
        """
        self._thread.check_process()
        if self._thread.ended:
            self._thread.stop()  # another thread's call may still be at it
            return True
        return self._thread.stop(self._thread.drain_timeout_s if drain is True else float(drain))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._thread.ours:  # a forked child that leaves the block ends nothing
            self.shutdown()

    def __repr__(self) -> str:
        status = "shut down" if self._thread.ended else self._front.status
        return f"PDEngine({self._front.deployment.model!r}, {status})\n{self.plan}"

    def __dir__(self) -> Iterable[str]:
        return [name for name in super().__dir__() if name not in UNSUPPORTED]


def _signature() -> inspect.Signature:
    """Return the constructor's signature, for `help` and for notebooks that complete from it."""
    parameters = [
        inspect.Parameter(
            row.field,
            inspect.Parameter.KEYWORD_ONLY,
            default=row.default,
            annotation=row.type.wanted,
        )
        for row in TABLE
    ]
    rest = inspect.Parameter("sglang_arguments", inspect.Parameter.VAR_KEYWORD)
    return inspect.Signature([*parameters, rest])


PDEngine.__signature__ = _signature()  # type: ignore[attr-defined]
