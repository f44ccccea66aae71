"""The server's main: settings → deployment → zygote → HTTP → engines, then the ordered stop.

Exit codes: 0 stopped, every request answered; 2 a setting or the plan is wrong, nothing was
started; 3 the start failed; 4 stopped, but requests were cut off at the drain deadline; 5 nothing
has served for FAILED_EXIT_S; 6 HTTP ended by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import os
import pkgutil
import socket
import sys
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import uvicorn

from pd_eagle.errors import PdEagleError, PlanRefused, SettingsError, StartFailed
from pd_eagle.front import Front
from pd_eagle.http import request_ids
from pd_eagle.http.api_options import ApiOptions
from pd_eagle.http.app import make_app
from pd_eagle.http.http_protocol import (
    BoundedProtocol,
    ClientLimits,
    connections_for,
    raise_descriptor_limit,
)
from pd_eagle.loops import new_event_loop
from pd_eagle.plan import deployment as deployments
from pd_eagle.plan.config import Settings
from pd_eagle.plan.deployment import SGLANG
from pd_eagle.workers import gc_freezing, signals, zygote
from pd_eagle.workers.zygote import ForkRefused

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pd_eagle.http.app import OpenAI
    from pd_eagle.plan.deployment import Deployment, Stack
    from pd_eagle.workers.zygote import ZygoteProcess

logger = logging.getLogger(__name__)

# GC generation-0 threshold, sized for about 100 streams; collecting later costs a few MB of cyclic
# garbage.
_GC_THRESHOLD = 50_000
_SWITCH_INTERVAL_S = 0.0005
EXIT_OK, EXIT_SETTINGS, EXIT_START, EXIT_CUT_OFF, EXIT_FAILED, EXIT_HTTP = 0, 2, 3, 4, 5, 6
_FAILED_POLL_S = 0.25


def main(environ: Mapping[str, str], stack: Stack = SGLANG) -> int:
    """Serve what `environ` asks for until SIGTERM, SIGHUP or SIGINT; return the exit code."""
    signals.exit_on_stop()
    try:
        settings = Settings.from_env(environ)
        _log_to_stderr(settings.log_level)
        deployment = deployments.decide(settings, environ, stack)
    except (SettingsError, PlanRefused) as error:
        return _refuse(error, EXIT_SETTINGS)
    except PdEagleError as error:
        return _refuse(error, EXIT_START)
    _announce(deployment)
    try:
        listener = _listen(settings.host, settings.port, settings.write_timeout_s)
        os.register_at_fork(after_in_child=listener.close)  # only the front listens on the port
        forked = _fork_zygote(deployment)
        loop = partial(new_event_loop, settings.event_loop)
        with asyncio.Runner(loop_factory=loop) as runner:
            return runner.run(_Server(deployment, forked, listener).run())
    except StartFailed as error:
        return _refuse(error, EXIT_START)


def _refuse(error: PdEagleError, exit_code: int) -> int:
    sys.stderr.write(f"pd_eagle: {error.code}\n{error}\n")
    return exit_code


def _log_to_stderr(level: str) -> None:
    form = "%(asctime)s %(levelname)-7s %(name)s %(request_id)s%(message)s"
    logging.basicConfig(level=level, format=form, force=True)
    for handler in logging.getLogger().handlers:
        handler.addFilter(request_ids.mark)


def _announce(deployment: Deployment) -> None:
    for warning in deployment.settings.warnings:
        logger.warning("%s", warning)
    if deployment.model_note:
        logger.warning("%s", deployment.model_note)
    logger.info("plan:\n%s", deployment.plan)
    outline = deployment.outline
    if outline.draft:
        logger.info("draft for %s: %s", deployment.settings.speculative_algorithm, outline.draft)
    if outline.transfer:
        logger.info("KV transfer: %s (%s)", outline.transfer, outline.transfer_reason)


def _listen(host: str, port: int, write_timeout_s: float) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections inherit it: Linux closes one whose peer acknowledges nothing for this long.
    write_timeout_ms = math.ceil(write_timeout_s * 1000)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, write_timeout_ms)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise StartFailed(
            f"HATHORA_DEFAULT_PORT={port}, PD_HOST={host!r}: wanted a free port of this machine: "
            f"{error.strerror}"
        ) from error
    return listener


def _fork_zygote(deployment: Deployment) -> ZygoteProcess | str:
    """Import SGLang here and fork the zygote, so that SGLang is imported only once.

    Returns the reason instead where it cannot be forked.
    """
    os.environ.update(deployment.environment)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if deployment.fork_refusal:
        return deployment.fork_refusal
    os.environ.update(deployment.zygote_variables)
    try:
        with _start_failure("what every engine loads"):
            return zygote.fork_from_here(deployment.preload_args(), deployment.stack.preload)
    except ForkRefused as refusal:
        return refusal.message
    except StartFailed as error:
        if deployment.plan.kind == "cpu":  # workers would fail in the same way
            raise
        return error.message


@contextlib.contextmanager
def _start_failure(what: str) -> Iterator[None]:
    """Map exceptions that SGLang and transformers raise while they load to `StartFailed`."""
    try:
        yield
    except (PdEagleError, ForkRefused):
        raise
    except Exception as error:
        logger.debug("%s could not be loaded", what, exc_info=True)
        raise StartFailed(f"{what} could not be loaded: {type(error).__name__}: {error}") from error


def _prioritize_event_loop() -> None:
    """Shorten the GIL's switch interval, so that the thread that applies templates yields sooner.

    uvloop acquires the GIL for each socket event and waits up to the switch interval for it, 5 ms
    by default: seconds in a burst of a thousand requests.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)


def _freeze_heap() -> None:
    """Exclude loaded modules from garbage collection, and collect young objects less often.

    A stream's objects live until it ends, so a collection every 700 objects finds no garbage.
    """
    gc_freezing.freeze()
    gc.set_threshold(_GC_THRESHOLD)


class _Server:
    """HTTP and the front in one event loop; signal handlers only record, the loop acts."""

    def __init__(
        self, deployment: Deployment, forked: ZygoteProcess | str, listener: socket.socket
    ) -> None:
        self._api: Future[OpenAI] = Future()
        self._front = Front(deployment, forked, self._api)
        self._listener = listener
        self._settings = deployment.settings
        self._signals = signals.StopSignals()
        app: Any = make_app(self._front, self._settings.cors_origins)
        if self._front.tracing is not None:
            app = self._front.tracing.over(app)
        config = uvicorn.Config(
            app,
            http=cast("Any", partial(BoundedProtocol, limits=_client_limits(deployment))),
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=5,
            timeout_keep_alive=math.ceil(self._settings.keep_alive_s),
        )
        self._http = _QuietServer(config)

    async def run(self) -> int:
        self._signals.listen()
        http = asyncio.create_task(self._http.serve([self._listener]))
        first_signal = asyncio.create_task(self._signals.next())
        failed = asyncio.create_task(self._until_failed())
        starting = asyncio.create_task(self._start())
        try:
            ends = {first_signal, http, failed}
            await asyncio.wait({starting, *ends}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            stopped = await self._stop(starting)
            return stopped if first_signal.done() else self._why_it_ended(http)
        except PdEagleError as error:
            return _refuse(error, EXIT_START)
        finally:
            for task in (first_signal, failed):
                task.cancel()
            self._http.should_exit = True
            await asyncio.gather(http, starting, return_exceptions=True)
            if self._front.tracing is not None:  # after the last response, which ends its span
                await asyncio.to_thread(self._front.tracing.shutdown)
            signals.block()  # so that a late signal does not change the exit code

    async def _until_failed(self) -> None:
        while not self._front.failed:  # noqa: ASYNC110 - depends on time, there is no event
            await asyncio.sleep(_FAILED_POLL_S)

    def _why_it_ended(self, http: asyncio.Task[None]) -> int:
        if not http.done():
            logger.critical(
                "nothing has served for %g s (FAILED_EXIT_S): this process ends, to be replaced",
                self._settings.failed_exit_s,
            )
            return EXIT_FAILED
        error = None if http.cancelled() else http.exception()
        logger.critical("HTTP ended by itself: this process ends, to be replaced", exc_info=error)
        return EXIT_HTTP

    async def _start(self) -> None:
        host, port = self._listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        logger.info("listening on http://%s:%d, engines are starting", shown, port)
        engines = asyncio.create_task(self._front.start())
        # Importing SGLang's serving classes takes seconds, while the engines start.
        layer = asyncio.create_task(asyncio.to_thread(self._make_openai))
        try:
            _, openai = await asyncio.gather(engines, layer)
        except BaseException:
            engines.cancel()
            await asyncio.wait({engines})  # stops what it has started
            raise
        _freeze_heap()
        _prioritize_event_loop()
        self._api.set_result(openai)
        logger.info("%s: serving %s", self._front.status, openai.model)

    def _make_openai(self) -> Any:
        with _start_failure("the OpenAI layer"):
            make = pkgutil.resolve_name(self._front.deployment.stack.openai)
            args = self._front.deployment.front_args()
            return make(self._front.service, args, ApiOptions.of(self._settings))

    async def _stop(self, starting: asyncio.Task[None]) -> int:
        starting.cancel()
        logger.info("stopping: running requests have %g s", self._settings.drain_timeout_s)
        draining = asyncio.create_task(self._front.stop(self._settings.drain_timeout_s))
        second_signal = asyncio.create_task(self._signals.next())
        await asyncio.wait({draining, second_signal}, return_when=asyncio.FIRST_COMPLETED)
        if not draining.done():
            logger.warning("second signal: stopping at once")
            draining.cancel()
            await self._front.stop(0.0)
            return EXIT_CUT_OFF
        second_signal.cancel()
        return EXIT_OK if await draining else EXIT_CUT_OFF


def _client_limits(deployment: Deployment) -> ClientLimits:
    settings = deployment.settings
    descriptors = raise_descriptor_limit()
    connections = connections_for(descriptors, len(deployment.plan.workers))
    logger.info("%d connections at once: this process may have %d files", connections, descriptors)
    return ClientLimits(
        settings.headers_timeout_s,
        settings.body_timeout_s,
        settings.max_headers_bytes,
        connections,
    )


class _QuietServer(uvicorn.Server):
    """uvicorn without its signal handlers: the front decides about draining."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
