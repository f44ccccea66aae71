"""The front: a deployment brought to life in this process, and what it says of itself.

Used by the server and by `PDEngine` alike. It knows nothing of HTTP.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pd_eagle.health import Health, WorkerHealth
from pd_eagle.launch import SpawnLauncher
from pd_eagle.service import Service
from pd_eagle.supervisor import bootstrap_ports
from pd_eagle.version import VERSION
from pd_eagle.worker import Launch
from pd_eagle.zygote import ZygoteLauncher

if TYPE_CHECKING:
    from pathlib import Path

    from pd_eagle.app import OpenAI
    from pd_eagle.deployment import Deployment
    from pd_eagle.launch import Launcher
    from pd_eagle.zygote import ZygoteProcess

logger = logging.getLogger(__name__)


class Front:
    """One deployment, running. `zygote` is None where workers must be spawned."""

    def __init__(self, deployment: Deployment, zygote: ZygoteProcess | None) -> None:
        self.deployment = deployment
        self.service = Service(
            deployment.plan, request_timeout_s=deployment.settings.request_timeout_s
        )
        self.openai: OpenAI | None = None
        self.api_key = deployment.settings.api_key
        self._zygote = zygote
        self._launcher: Launcher | None = None

    async def start(self) -> None:
        """Start every worker and carry a token over every pair. Raises `StartFailed`."""
        plan = self.deployment.plan
        ports = bootstrap_ports(
            self.deployment.settings.disagg_bootstrap_port, [w.name for w in plan.prefill]
        )
        self._launcher = launcher = await self._make_launcher()
        by_name = {worker.name: worker for worker in plan.workers}

        def launch(name: str, temp_dir: Path) -> Launch:
            port = ports.get(name)
            args = self.deployment.engine_args(by_name[name], port)
            return Launch(launcher, args, temp_dir, {}, port)

        await self.service.start(launch)

    async def _make_launcher(self) -> Launcher:
        if self._zygote is None:
            return SpawnLauncher(self.deployment.environment)
        zygote = ZygoteLauncher(self._zygote)
        if reason := await zygote.ready():
            logger.warning("workers are spawned, not forked: %s", reason)
            await zygote.close()
            return SpawnLauncher(self.deployment.environment)
        return zygote

    async def stop(self, drain_timeout_s: float = 0.0) -> bool:
        """Drain, stop every worker; False if requests were cut off."""
        drained = await self.service.stop(drain_timeout_s)
        if self._launcher is not None:
            await self._launcher.close()
        return drained

    def health(self) -> Health:
        deployment = self.deployment
        return Health(
            status=self.service.status,
            model=deployment.model,
            model_note=deployment.model_note,
            draft_model=deployment.outline.draft,
            transfer_backend=deployment.outline.transfer,
            transfer_reason=deployment.outline.transfer_reason,
            region=deployment.settings.region,
            version=VERSION,
            plan=deployment.plan,
            workers=[WorkerHealth.of(worker) for worker in self.service.workers],
            inflight=self.service.inflight,
            queued=0,
        )


def check_forked_engines(deployment: Deployment) -> bool:
    """Return whether engines of `deployment` may be forked: on CUDA that is not proven."""
    return deployment.plan.kind == "cpu"
