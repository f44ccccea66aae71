"""How requests are treated: limits, retries and timeouts, as one value. It decides nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from pd_eagle.workers.restarts import RestartPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePolicy:
    """The settings of the same names say in full what each field means."""

    request_timeout_s: float = 600.0
    retry_limit: int = 3
    resume: bool = True
    max_inflight: int | None = None
    max_queue: int | None = None
    max_inflight_per_client: int | None = None
    queue_timeout_s: float = 30.0
    canary_interval_s: float = 30.0
    prefill_window_tokens: int | None = None
    speculative: bool = False
    restarts: RestartPolicy = field(default_factory=RestartPolicy)
