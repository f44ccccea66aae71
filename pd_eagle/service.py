"""The async heart: start a plan, check and stream requests, tell how it is, stop.

Everything above it (HTTP, `PDEngine`) enters at `Service.stream`. It knows nothing of HTTP or of
SGLang's dictionaries.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from contextlib import aclosing
from typing import TYPE_CHECKING, Literal

from pd_eagle import handoff
from pd_eagle.errors import ContextLengthExceeded, InvalidRequest, NotServing, PdEagleError
from pd_eagle.messages import Request
from pd_eagle.router import Router
from pd_eagle.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from pd_eagle.messages import Delta
    from pd_eagle.placement import Plan
    from pd_eagle.router import Pair
    from pd_eagle.worker import Launch, Worker

logger = logging.getLogger(__name__)

Status = Literal["starting", "ready", "degraded", "draining", "failed"]

_PROBE_TIMEOUT_S = 120.0


def new_rid() -> str:
    """Return a request id: 32 hexadecimal digits, so never the prefix of another."""
    return uuid.uuid4().hex


class Service:
    """All workers of one plan as one object that answers requests."""

    def __init__(self, plan: Plan, *, request_timeout_s: float) -> None:
        self.plan = plan
        self.status: Status = "starting"
        self.inflight = 0
        self._request_timeout_s = request_timeout_s
        self._supervisor = Supervisor(plan, self._on_worker_death)
        self._router = Router(self.workers)
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def workers(self) -> list[Worker]:
        return self._supervisor.workers

    async def start(self, launch: Callable[[str, Path], Launch]) -> None:
        """Start all workers and run one real token through every pair.

        Raises `StartFailed` when a worker cannot start, or the first error of a pair's token.
        """
        began = time.monotonic()
        try:
            await self._supervisor.start(launch)
            logger.info("%d workers up after %.1f s", len(self.workers), time.monotonic() - began)
            await asyncio.gather(*(self.probe(pair) for pair in self._router.all_pairs()))
        except BaseException:
            self.status = "failed"
            await self._supervisor.stop()
            raise
        self._settle_status()
        logger.info("%s after %.1f s", self.status, time.monotonic() - began)

    async def probe(self, pair: Pair) -> None:
        """Carry one real token over `pair` from prompt to end."""
        request = Request(new_rid(), [0], {"max_new_tokens": 1, "temperature": 0})
        deadline = asyncio.get_running_loop().time() + _PROBE_TIMEOUT_S
        async with aclosing(handoff.run(pair, request, deadline)) as deltas:
            async for _ in deltas:
                pass
        logger.info("%s carried a token end to end", pair.name)

    async def stream(self, request: Request) -> AsyncGenerator[Delta, None]:
        """Yield what the engines add to `request`; the last delta is `finished`.

        Close the generator (`contextlib.aclosing`) to abort. Raises `InvalidRequest` before
        anything is sent to an engine, else a `PdEagleError` as the request's one terminal event.
        """
        self._refuse_unless_serving()
        self.check(request)
        timeout_s = request.timeout_s or self._request_timeout_s
        deadline = asyncio.get_running_loop().time() + timeout_s
        pair = self._router.pick()
        logger.debug("request %s goes to %s", request.rid, pair.name)
        self._enter()
        try:
            async with aclosing(handoff.run(pair, request, deadline)) as deltas:
                async for delta in deltas:
                    yield delta
        except PdEagleError as error:
            level = logging.DEBUG if error.status < 500 else logging.WARNING
            logger.log(level, "request %s failed on %s: %s", request.rid, pair.name, error)
            raise
        finally:
            self._leave()

    def check(self, request: Request) -> None:
        """Refuse what an engine would refuse, or die of. Raises `InvalidRequest`.

        SGLang 0.5.23 does not check token ids: one outside the vocabulary kills the scheduler. A
        request that one half alone refuses would hang on the other.
        """
        infos = [worker.info for worker in self.workers if worker.info is not None]
        ids = request.input_ids
        if not ids:
            raise InvalidRequest("the prompt is empty: wanted at least one token")
        vocab_size = min(info.vocab_size for info in infos)
        if min(ids) < 0 or max(ids) >= vocab_size:
            wrong = next(i for i in ids if not 0 <= i < vocab_size)
            raise InvalidRequest(f"token id {wrong} in the prompt: wanted 0 to {vocab_size - 1}")
        new_tokens = request.sampling_params.get("max_new_tokens") or 0
        _check_length(len(ids), new_tokens, min(info.context_length for info in infos))
        pool = min(info.max_total_tokens for info in infos)
        if len(ids) + new_tokens > pool:
            raise ContextLengthExceeded(
                f"{len(ids)} prompt tokens and {new_tokens} new tokens do not fit the engine's "
                f"KV pool of {pool} tokens"
            )

    def _refuse_unless_serving(self) -> None:
        if self.status not in ("ready", "degraded"):
            raise NotServing(f"the service is {self.status}")

    def _enter(self) -> None:
        self.inflight += 1
        self._idle.clear()

    def _leave(self) -> None:
        self.inflight -= 1
        if self.inflight == 0:
            self._idle.set()

    def _on_worker_death(self, worker: Worker, how: str) -> None:
        logger.error("%s failed: %s", worker.name, how)
        self._settle_status()

    def _settle_status(self) -> None:
        if self.status == "draining":
            return
        if all(worker.state == "ready" for worker in self.workers):
            self.status = "ready"
        elif self._router.all_pairs():
            self.status = "degraded"
        elif any(worker.state == "starting" for worker in self.workers):
            self.status = "starting"
        else:
            self.status = "failed"

    async def stop(self, drain_timeout_s: float = 0.0) -> bool:
        """Refuse new requests, let running ones end for a while, stop all workers.

        Returns False if requests were cut off.
        """
        self.status = "draining"
        if self.inflight:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), drain_timeout_s)
        drained = self.inflight == 0
        if not drained:
            logger.warning("%d requests are cut off", self.inflight)
        await self._supervisor.stop()
        return drained


def _check_length(prompt_tokens: int, new_tokens: int, context_length: int) -> None:
    if prompt_tokens >= context_length:
        raise ContextLengthExceeded(
            f"the prompt has {prompt_tokens} tokens: wanted fewer than the context's "
            f"{context_length}"
        )
    if prompt_tokens + new_tokens > context_length:
        raise ContextLengthExceeded(
            f"{prompt_tokens} prompt tokens and {new_tokens} new tokens: wanted at most the "
            f"context's {context_length} together"
        )
