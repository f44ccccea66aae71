"""The front: one deployment that runs in this process, and what it says of itself.

Used by the server and by `PDEngine` alike. It knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from functools import partial
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from pd_eagle.errors import StartFailed
from pd_eagle.gpu_holds import GpuHolds
from pd_eagle.plan import speculation
from pd_eagle.requests import tracing
from pd_eagle.requests.exposition import Exposition
from pd_eagle.requests.fleet import SERVING
from pd_eagle.requests.health import Health, WorkerHealth
from pd_eagle.requests.metrics import Metrics
from pd_eagle.requests.operations import Operations
from pd_eagle.requests.policy import ServicePolicy
from pd_eagle.requests.service import Service
from pd_eagle.version import VERSION
from pd_eagle.workers.fork_launcher import ForkLauncher
from pd_eagle.workers.launch import Launch, SpawnLauncher
from pd_eagle.workers.ports import BootstrapPorts
from pd_eagle.workers.restarts import RestartPolicy
from pd_eagle.workers.zygote import ZygoteLauncher, spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from pd_eagle.plan.config import Settings
    from pd_eagle.plan.deployment import Deployment
    from pd_eagle.requests.fleet import Status
    from pd_eagle.workers.launch import Launcher
    from pd_eagle.workers.zygote import ZygoteProcess

logger = logging.getLogger(__name__)

_ACCEPTANCE_INTERVAL_S = 60.0
_ROLES_INTERVAL_S = 1.0
#: Two services may share a GPU if each is configured to take at most this share of its memory.
_SHARED_FRACTION = 0.45


async def every(seconds: float, report: Callable[[], None]) -> None:
    """Call `report` periodically; log what it raises, and go on."""
    while True:
        await asyncio.sleep(seconds)
        try:
            report()
        except Exception:
            logger.exception("a report failed")


class Api(Protocol):
    """What reads requests and forms answers over the service: OpenAI's, or `PDEngine`'s own."""

    @property
    def tool_call_parser(self) -> str | None: ...
    def detokenize(self, ids: list[int], /) -> str: ...


ApiT = TypeVar("ApiT", bound=Api)


class Front(Generic[ApiT]):
    """One deployment, running."""

    def __init__(
        self, deployment: Deployment, zygote: ZygoteProcess | str, api: Future[ApiT]
    ) -> None:
        """`zygote` is the reason where workers must be spawned. Nothing may be forked from here on:
        there may be threads.

        `api` is loaded by the owner while the engines start; until it is done, nothing is served.
        """
        settings = deployment.settings
        self.deployment = deployment
        self.tracing = tracing.start(settings.traces_url, settings.region)
        if settings.traces_url and not deployment.tracing_args:
            logger.warning("engines make no spans: wanted pip install 'pd-eagle[tracing]'")
        metrics = Metrics()
        watch = self.tracing.watching(metrics, deployment.model) if self.tracing else metrics.begin
        self.service = Service(
            deployment.plan, _policy(settings), watch=watch, detokenize=self._detokenize
        )
        self._exposition = Exposition(metrics, self.service)
        self._api = api
        self.api_key = settings.api_key
        self.admin_api_key = settings.admin_api_key
        self.operations = Operations(self.service)
        self.keep_alive_s = settings.sse_keep_alive_s
        self.max_body_memory_bytes = settings.max_body_memory_bytes
        self._zygote = None if isinstance(zygote, str) else zygote
        self._spawned_because = zygote if isinstance(zygote, str) else ""
        self._launcher: Launcher | None = None
        self._ports: BootstrapPorts | None = None
        self._gpus: GpuHolds | None = None
        self._reporting: list[asyncio.Task[None]] = []
        self._reported: dict[str, float] = {}

    @property
    def api(self) -> ApiT | None:
        """The API over the service, None while it is being loaded."""
        return self._api.result() if self._api.done() else None

    def _detokenize(self, ids: list[int]) -> str:
        return self._api.result(timeout=0).detokenize(ids)  # no request comes before it is loaded

    async def start(self) -> None:
        """Start every worker and carry a token over every pair. Raises `StartFailed`."""
        self._gpus = _hold_gpus(self.deployment)
        plan, asked = self.deployment.plan, self.deployment.settings.disagg_bootstrap_port
        ports = BootstrapPorts(asked, [worker.name for worker in plan.prefill])
        self._ports = ports
        launcher = await self._make_launcher()
        by_name = {worker.name: worker for worker in plan.workers}

        def launch(name: str, temp_dir: Path) -> Launch:
            port = ports.take(name) if by_name[name].role == "prefill" else None
            args = self.deployment.engine_args(by_name[name], port)
            return Launch(launcher, args, temp_dir, port, self.deployment.stack.engine)

        await self.service.start(launch)
        self._reporting = [
            asyncio.create_task(every(seconds, report))
            for seconds, report in (
                (_ACCEPTANCE_INTERVAL_S, self.report_acceptance),
                (_ROLES_INTERVAL_S, self.report_bottleneck),
            )
        ]

    def report_acceptance(self) -> None:
        """Log the recent acceptance of drafts, and where drafting costs more than it gains."""
        found = {
            worker.name: worker.load.spec_accept_length
            for worker in self.service.workers
            if worker.load and worker.load.spec_accept_length
        }
        if found == self._reported:  # nothing was generated since
            return
        self._reported = found
        said = ", ".join(f"{name} {length:.2f}" for name, length in found.items())
        logger.info("EAGLE acceptance, tokens per verification: %s", said)
        tree = self.deployment.plan.tree
        for worker in self.service.workers:
            expected, load = self.service.expected_speedup(worker), worker.load
            if expected is None or expected >= 1 or load is None or tree is None:
                continue
            length = load.spec_accept_length or 0.0
            logger.warning("%s", speculation.alarm(worker.name, tree, load.running, length))

    def report_bottleneck(self) -> None:
        """Log, once, that one role is the bottleneck."""
        if found := self.service.watch_roles():
            logger.warning("%s", found)

    async def _make_launcher(self) -> Launcher:
        deployment = self.deployment
        spawning = SpawnLauncher(deployment.environment, self._spawned_because)
        if self._zygote is not None:
            timeout_s = deployment.settings.start_timeout_s
            zygote = ZygoteLauncher(self._zygote, timeout_s)
            respawn = partial(spawn_zygote, deployment)
            # `stop` may come before it is ready.
            self._launcher = ForkLauncher(zygote, respawn, spawning, timeout_s)
            if not (reason := await self._why_not_fork(zygote)):
                return self._launcher
            spawning.because = reason
            await zygote.close()
        logger.warning("workers are spawned, not forked: %s", spawning.because)
        self._launcher = spawning
        return self._launcher

    async def _why_not_fork(self, zygote: ZygoteLauncher) -> str | None:
        try:
            return await zygote.ready()
        except StartFailed as error:
            if self.deployment.plan.kind == "cpu":  # workers would fail in the same way
                raise
            return error.message

    async def stop(self, drain_timeout_s: float = 0.0) -> bool:
        """Drain, stop every worker; False if requests were cut off."""
        drained = await self.service.stop(drain_timeout_s)
        for report in self._reporting:
            report.cancel()
        if self._launcher is not None:
            await self._launcher.close()
        elif self._zygote is not None:  # the start failed before it was used
            self._zygote.discard()
            self._zygote = None
        if self._ports is not None:
            self._ports.release()
        if self._gpus is not None:
            self._gpus.release()
        return drained

    def kill(self) -> None:
        """Kill every process at once, from any thread; `stop` cleans up after it."""
        self.service.kill()
        if self._zygote is not None:
            for kill in (os.killpg, os.kill):  # it may not lead its group yet
                with contextlib.suppress(ProcessLookupError):
                    kill(self._zygote.pid, signal.SIGKILL)

    @property
    def failed(self) -> bool:
        """Whether nothing has served for so long that this process should be replaced."""
        return self.service.fleet.failed_share(self.deployment.settings.failed_exit_s) >= 1

    @property
    def failing(self) -> bool:
        """Whether half of that time is over."""
        return self.service.fleet.failed_share(self.deployment.settings.failed_exit_s) >= 0.5

    @contextlib.contextmanager
    def admit(self, client: str) -> Iterator[None]:
        """Let `client` have one more request open; raises before any work is put into it.

        Raises `Overloaded`, `TooManyRequests` or `NotServing`.
        """
        self.service.refuse_if_full()
        self.service.admission.admit_client(client)
        try:
            yield
        finally:
            self.service.admission.dismiss_client(client)

    def metrics(self, accept: str) -> tuple[bytes, str]:
        """Return all series and their content type. Reads files: milliseconds a worker."""
        return self._exposition.text(accept)

    @property
    def status(self) -> Status:
        """The service's status; `starting` too while the API is being loaded."""
        status = self.service.status
        return "starting" if status in SERVING and self.api is None else status

    def health(self) -> Health:
        deployment, api = self.deployment, self.api
        return Health(
            status=self.status,
            model=deployment.model,
            model_note=deployment.model_note,
            draft_model=deployment.outline.draft,
            transfer_backend=deployment.outline.transfer,
            transfer_reason=deployment.outline.transfer_reason,
            region=deployment.settings.region,
            version=VERSION,
            plan=deployment.plan,
            workers=[
                WorkerHealth.of(worker, self.service.expected_speedup(worker))
                for worker in self.service.workers
            ],
            bottleneck=self.service.bottleneck,
            inflight=self.service.inflight,
            queued=self.service.queued,
            tool_call_parser=api.tool_call_parser if api else None,
        )


def _hold_gpus(deployment: Deployment) -> GpuHolds:
    devices = deployment.outline.inventory.devices
    used = {index for worker in deployment.plan.workers for index in worker.devices}
    share = deployment.settings.mem_fraction_static
    if share is not None and share <= _SHARED_FRACTION:
        used = set()
    return GpuHolds((device for device in devices if device.index in used), deployment.model)


def _policy(settings: Settings) -> ServicePolicy:
    return ServicePolicy(
        request_timeout_s=settings.request_timeout_s,
        retry_limit=settings.retry_limit,
        resume=settings.resume,
        max_inflight=settings.max_inflight,
        max_queue=settings.max_queue,
        max_inflight_per_client=settings.max_inflight_per_client,
        queue_timeout_s=settings.queue_timeout_s,
        canary_interval_s=settings.canary_interval_s,
        prefill_window_tokens=settings.prefill_window_tokens,
        speculative=settings.speculative_algorithm is not None,
        restarts=RestartPolicy(
            limit=settings.restart_limit,
            hang_timeout_s=settings.hang_timeout_s,
            start_timeout_s=settings.start_timeout_s,
        ),
    )


def spawn_zygote(deployment: Deployment) -> ZygoteProcess:
    """Start a zygote for `deployment` as a Python of its own: this process may have threads."""
    environment = {**deployment.environment, **deployment.zygote_variables}
    return spawn(environment, deployment.preload_args(), deployment.stack.preload)
