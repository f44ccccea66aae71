"""What operators and routers ask of a running service, in the form of SGLang's own server (0.5.23).

It knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pd_eagle.errors import NotServing, Overloaded
from pd_eagle.messages import Request, new_rid
from pd_eagle.requests.fleet import SERVING
from pd_eagle.version import VERSION

if TYPE_CHECKING:
    from pd_eagle.messages import ControlName
    from pd_eagle.requests.service import Service
    from pd_eagle.workers.worker import Worker

logger = logging.getLogger(__name__)

_CONTROL_TIMEOUT_S = 30.0
#: SGLang's own limit for its health check.
_TOKEN_TIMEOUT_S = 20.0


class Operations:
    """Operations on one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._started_at = time.time()
        self._token: asyncio.Task[None] | None = None

    async def generate_token(self) -> None:
        """Generate one token as a client would. Raises what that fails with.

        Callers at the same time share one: they cannot load the engines.
        """
        if self._service.status not in SERVING:
            raise NotServing(f"the service is {self._service.status}")
        if self._token is None or self._token.done():
            self._token = asyncio.create_task(self._generate_token())
        await asyncio.shield(self._token)

    async def _generate_token(self) -> None:
        params = {"max_new_tokens": 1, "temperature": 0}
        request = Request(new_rid(), [0], params, timeout_s=_TOKEN_TIMEOUT_S)
        try:
            async with aclosing(self._service.stream(request)) as deltas:
                async for _ in deltas:
                    pass
        except Overloaded:
            logger.debug("no token for a health check: the engines are busy")

    async def control(self, name: ControlName, arguments: dict[str, Any]) -> dict[str, Any]:
        """Have every engine do `name`; return what each says. Raises as `Fleet.control` does."""
        return await self._service.fleet.control(name, arguments, timeout_s=_CONTROL_TIMEOUT_S)

    async def flush_cache(self, wait_s: float) -> str | None:
        """Empty every engine's prefix cache; return why one could not be, None if all are.

        An engine that is busy is waited for up to `wait_s`.
        """
        wait_s = min(wait_s, _CONTROL_TIMEOUT_S / 2)
        said = await self.control("flush_cache", {"timeout_s": wait_s})
        failed = {name: one["message"] for name, one in said.items() if not one["success"]}
        return "; ".join(f"{name}: {why or 'it is busy'}" for name, why in failed.items()) or None

    async def server_info(self) -> dict[str, Any]:
        """Return what SGLang's `/server_info` says, of an engine that generates.

        `internal_states` has one entry for each engine, named by `worker`, those that generate
        first: clients read the first alone.
        """
        said = await self.control("get_server_info", {})
        roles = {worker.name: worker.role for worker in self._service.workers}
        shown, *_ = names = sorted(said, key=lambda name: roles[name] == "prefill")
        states = [
            {"worker": name, "role": roles[name], **state}
            for name, info in ((name, said[name]) for name in names)
            for state in info["internal_states"]
        ]
        own = {
            "frontend": "pd_eagle",
            "pd_eagle_version": VERSION,
            "startup_time": self._started_at,
        }
        info: dict[str, Any] = said[shown]
        return info | {"internal_states": states} | own

    def loads(self) -> dict[str, Any]:
        """Return what SGLang's `/v1/loads` says: one entry an engine, `dp_rank` counting them."""
        entries = [_load(rank, worker) for rank, worker in enumerate(self._service.workers)]
        return {
            "timestamp": datetime.now(UTC).isoformat(),
            "version": VERSION,
            "accelerator": self._service.plan.kind,
            "num_accelerators": sum(max(len(w.plan.devices), 1) for w in self._service.workers),
            "loads": [entry for entry in entries if entry is not None],
        }

    def loads_exposition(self) -> str:
        """Return the same in Prometheus' text format, as SGLang names it."""
        lines: dict[str, list[str]] = {}
        for entry in self.loads()["loads"]:
            label = f'{{dp_rank="{entry["dp_rank"]}",worker="{entry["worker"]}"}}'
            for name, value in entry.items():
                if isinstance(value, int | float) and name != "dp_rank":
                    lines.setdefault(f"sglang_{name}", []).append(f"sglang_{name}{label} {value}")
        return "".join(
            f"# TYPE {name} gauge\n" + "\n".join(samples) + "\n" for name, samples in lines.items()
        )


def _load(rank: int, worker: Worker) -> dict[str, Any] | None:
    load, info = worker.load, worker.info
    if load is None or info is None:
        return None
    return {
        "dp_rank": rank,
        "worker": worker.name,
        "role": worker.role,
        "timestamp": load.snapshot_at,
        "num_running_reqs": load.running,
        "num_waiting_reqs": load.waiting,
        "num_total_reqs": load.running + load.waiting,
        "num_used_tokens": load.used_tokens,
        "max_total_num_tokens": info.max_total_tokens,
        "token_usage": round(load.used_tokens / info.max_total_tokens, 4),
        "max_running_requests": load.max_running,
    }
