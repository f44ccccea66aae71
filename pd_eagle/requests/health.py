"""How the service is, as one value that `/health` prints. It decides nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pd_eagle.requests.fleet import SERVING

if TYPE_CHECKING:
    from pd_eagle.plan.placement import Plan
    from pd_eagle.requests.bottleneck import Bottleneck
    from pd_eagle.requests.fleet import Status
    from pd_eagle.workers.worker import Worker


@dataclass(frozen=True, slots=True)
class WorkerHealth:
    """One worker. `spec_accept_length` is in tokens per verification, None without EAGLE.

    Below 1 of `spec_expected_speedup` EAGLE makes it slower; None where that is not known.
    `spawned_because` says why its processes, or its scheduler, were not forked; None: they were.
    `back_in_s` is while it does not serve: what is left of its start if that takes as long as the
    last one, in seconds.

    `running` and `kv_tokens_used` are what its engine said last, at most a second or two ago, of
    requests and of `kv_tokens`, its pool; what can be evicted from the cache does not count.
    `max_running` is how many requests it decodes at once at most.
    """

    name: str
    role: str
    state: str
    pid: int | None
    scheduler_pids: list[int]
    bootstrap_port: int | None
    restarts: int
    spawned_because: str | None
    back_in_s: float | None
    inflight: int
    served: int
    running: int | None
    max_running: int | None
    kv_tokens_used: int | None
    kv_tokens: int | None
    spec_accept_length: float | None
    spec_expected_speedup: float | None
    last_error: str | None

    @classmethod
    def of(cls, worker: Worker, spec_expected_speedup: float | None = None) -> WorkerHealth:
        return cls(
            name=worker.name,
            role=worker.role,
            state=worker.state,
            pid=worker.pid,
            scheduler_pids=worker.info.scheduler_pids if worker.info and worker.pid else [],
            bootstrap_port=worker.bootstrap_port,
            restarts=worker.restarts,
            spawned_because=worker.spawned_because,
            back_in_s=None if worker.back_in_s is None else round(worker.back_in_s, 1),
            inflight=worker.inflight,
            served=worker.served,
            running=worker.load.running if worker.load else None,
            max_running=(worker.load.max_running or None) if worker.load else None,
            kv_tokens_used=worker.load.used_tokens if worker.load else None,
            kv_tokens=worker.info.max_total_tokens if worker.info else None,
            spec_accept_length=worker.load.spec_accept_length if worker.load else None,
            spec_expected_speedup=spec_expected_speedup,
            last_error=worker.last_error,
        )


@dataclass(frozen=True, slots=True)
class Health:
    """The whole service."""

    status: Status
    model: str
    model_note: str | None
    draft_model: str | None
    transfer_backend: str | None
    transfer_reason: str | None
    region: str | None
    version: str
    plan: Plan
    workers: list[WorkerHealth]
    inflight: int
    queued: int
    tool_call_parser: str | None = None
    bottleneck: Bottleneck | None = None

    @property
    def serving(self) -> bool:
        return self.status in SERVING

    def as_json(self) -> dict[str, Any]:
        in_pd = self.plan.mode == "pd"
        ports = [w.bootstrap_port for w in self.workers if w.bootstrap_port is not None]
        return {
            "status": self.status,
            "pd_mode": in_pd,
            "pd_bootstrap_port": ports[0] if ports else None,
            "pd_bootstrap_ports": ports,
            "model": self.model,
            "model_note": self.model_note,
            "draft_model": self.draft_model,
            "transfer_backend": self.transfer_backend,
            "transfer_reason": self.transfer_reason,
            "tool_call_parser": self.tool_call_parser,
            "region": self.region,
            "version": self.version,
            "plan": {
                "mode": self.plan.mode,
                "reason": self.plan.reason,
                "notes": list(self.plan.notes),
                "tree": asdict(self.plan.tree) if self.plan.tree else None,
                "defaults": [asdict(default) for default in self.plan.defaults],
                "workers": [asdict(worker) for worker in self.plan.workers],
            },
            "workers": [asdict(worker) for worker in self.workers],
            "inflight": self.inflight,
            "queued": self.queued,
            "bottleneck": asdict(self.bottleneck) if self.bottleneck else None,
        }
