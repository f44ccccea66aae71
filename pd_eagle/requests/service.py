"""The service: starts a plan's workers, checks, admits and streams requests, stops.

Everything above it (HTTP, `PDEngine`) enters at `Service.stream`. It knows nothing of HTTP or of
SGLang's dictionaries.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from contextlib import aclosing, closing
from functools import partial
from typing import TYPE_CHECKING

from pd_eagle.errors import EngineCrashed, NotServing, PdEagleError, TransferFailed, WorkerDied
from pd_eagle.plan import speculation
from pd_eagle.plan.tuning import TOKENS_PER_REQUEST
from pd_eagle.requests import bottleneck, gate, handoff
from pd_eagle.requests.aborts import Aborts
from pd_eagle.requests.admission import Admission, Limits
from pd_eagle.requests.attempts import Attempts
from pd_eagle.requests.culprits import Culprits
from pd_eagle.requests.eagle_rules import EagleRules
from pd_eagle.requests.fleet import Fleet
from pd_eagle.requests.metrics import Metrics
from pd_eagle.requests.pair_selection import PairSelection
from pd_eagle.requests.prefill_window import PrefillWindows
from pd_eagle.requests.quarantine import Quarantine

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from pd_eagle.messages import Delta, EngineInfo, Request
    from pd_eagle.plan.placement import Plan
    from pd_eagle.requests.bottleneck import Bottleneck
    from pd_eagle.requests.fleet import Status
    from pd_eagle.requests.metrics import RequestWatch
    from pd_eagle.requests.policy import ServicePolicy
    from pd_eagle.requests.router import Pair
    from pd_eagle.workers.death import Death
    from pd_eagle.workers.launch import Launch
    from pd_eagle.workers.worker import Worker

logger = logging.getLogger(__name__)


class Service:
    """All workers of one plan as one object that answers requests."""

    def __init__(
        self,
        plan: Plan,
        policy: ServicePolicy,
        *,
        watch: Callable[[Request], RequestWatch] | None = None,
        detokenize: Callable[[list[int]], str] | None = None,
    ) -> None:
        """`watch` is told of each request from its acceptance to its end.

        `detokenize` makes text of token ids; without it, every addition to an answer is taken to
        end a character, which matters where an answer is resumed.
        """
        self.plan = plan
        self.resumed = 0
        self.retried = 0
        self.open = 0
        self._policy = policy
        self._watch = watch or Metrics().begin
        self._detokenize = detokenize
        self.fleet = Fleet(plan, policy, self._on_crash)
        self._quarantine = Quarantine(self.fleet.supervisor.blame, self.fleet.update)
        self._culprits = Culprits()
        self.aborts = Aborts()
        self.windows = PrefillWindows(policy.prefill_window_tokens)
        self._pairs = PairSelection(self.fleet, self._quarantine, self.windows)
        self._roles = bottleneck.Watch(plan)
        self.admission = Admission(Limits(1, 1, 0, policy.queue_timeout_s))
        self.eagle_rules = EagleRules() if policy.speculative else None
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def status(self) -> Status:
        return self.fleet.status

    @property
    def workers(self) -> list[Worker]:
        return self.fleet.workers

    @property
    def inflight(self) -> int:
        return self.admission.inflight

    @property
    def queued(self) -> int:
        return self.admission.queued

    @property
    def max_inflight(self) -> int:
        return self.admission.limits.max_inflight

    @property
    def places(self) -> int:
        """How many requests may run and wait at once."""
        return self.admission.limits.max_inflight + self.admission.limits.max_queue

    @property
    def request_timeout_s(self) -> float:
        return self._policy.request_timeout_s

    @property
    def limits(self) -> EngineInfo:
        """What every engine can do; raises `NotServing` before the first have started."""
        if self.fleet.limits is None:
            raise NotServing(f"the service is {self.status}")
        return self.fleet.limits

    # --- life

    async def start(self, launch: Callable[[str, Path], Launch]) -> None:
        """Start all workers and carry a prompt over every pair.

        Raises `StartFailed` when a worker cannot start, or the first error of a pair's token.
        """
        began = time.monotonic()
        await self.fleet.start(launch)
        self._set_admission_limits()
        logger.info("%s after %.1f s", self.status, time.monotonic() - began)

    def _set_admission_limits(self) -> None:
        """Derive how much may run at once from the KV pools of the engines that answer."""
        serving = [w.info for w in self.workers if w.info is not None and w.role != "prefill"]
        tokens = sum(info.max_total_tokens for info in serving)
        inflight = self._policy.max_inflight or max(tokens // TOKENS_PER_REQUEST, 8)
        queue = self._policy.max_queue
        self.admission.limits = Limits(
            inflight,
            tokens,
            4 * inflight if queue is None else queue,
            self._policy.queue_timeout_s,
            self._policy.max_inflight_per_client,
        )

    async def stop(self, drain_timeout_s: float = 0.0) -> bool:
        """Refuse new requests, let running ones end for a while, stop all workers.

        Returns False if requests were cut off.
        """
        self.fleet.drain()
        if self.open:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), drain_timeout_s)
        drained = self.open == 0
        if not drained:
            logger.warning("%d requests are cut off", self.open)
        await self.fleet.stop()
        return drained

    def kill(self) -> None:
        """Kill every worker at once, from any thread; `stop` cleans up after it."""
        self.fleet.supervisor.kill()

    def _on_crash(self, worker: Worker, death: Death) -> bool:
        words, in_prefill = death.crash or death.how, worker.role == "prefill"
        return self._quarantine.crashed(worker.name, death.rids, words, in_prefill=in_prefill)

    # --- one request

    async def stream(
        self, request: Request, group: object = None, *, patient: bool = False
    ) -> AsyncGenerator[Delta, None]:
        """Yield what the engines add to `request`; the last delta is `finished`.

        Close the generator (`contextlib.aclosing`) to abort. Requests of one `group` wait in one
        line. One that is `patient` is never refused for the length of the queue, and its time
        counts from its turn. Raises `InvalidRequest` before anything is sent to an engine, else a
        `PdEagleError` as the request's one terminal event.
        """
        cost = self._accept(request)
        # This generator and the handoff's are all that every token passes through.
        async with self._admitted(request, cost, group, patient=patient) as attempts:
            while True:
                async with self._attempt(attempts) as deltas:
                    async for delta in deltas:
                        if (addition := attempts.add(delta)) is None:
                            continue
                        yield addition
                        if addition.finished:
                            return

    def _accept(self, request: Request) -> int:
        """Return the KV tokens that `request` may need; raises where it must reach no engine."""
        self._refuse_unless_serving()
        cost = self.check(request)
        self._culprits.refuse(request)
        return cost

    @contextlib.asynccontextmanager
    async def _admitted(
        self, request: Request, cost: int, group: object, *, patient: bool
    ) -> AsyncGenerator[Attempts, None]:
        """Wait for a place, hold it until the request is over, and tell its watch how it ended."""
        loop, timeout_s = asyncio.get_running_loop(), self._timeout_s(request)
        last_turn = None if patient else loop.time() + timeout_s
        watch = self._watch(request)
        self._count_open(1)
        try:
            line = request.rid if group is None else id(group)
            with self.aborts.listening(request.rid) as cut:
                await self.admission.enter(line, cost, last_turn)
                try:
                    watch.admitted(len(request.input_ids))
                    deadline = last_turn or loop.time() + timeout_s
                    with closing(self._attempts(request, deadline, watch, cut)) as attempts:
                        yield attempts
                finally:
                    self.admission.leave(cost)
        except PdEagleError as error:
            watch.failed(error)
            raise
        finally:
            watch.end()
            self._count_open(-1)

    def _attempts(
        self, request: Request, deadline: float, watch: RequestWatch, cut: asyncio.Future[None]
    ) -> Attempts:
        policy, quarantine = self._policy, self._quarantine
        return Attempts(request, deadline, policy, watch, quarantine, self._detokenize, cut)

    @contextlib.asynccontextmanager
    async def _attempt(self, attempts: Attempts) -> AsyncGenerator[AsyncGenerator[Delta], None]:
        """Give the deltas of one attempt, on a pair that is free for it.

        A failure of the pair is swallowed if another attempt may follow.
        """
        pair, turn = await self._pairs.select(attempts)
        asked = attempts.begin(pair)
        on_phase = turn.releasing(partial(self._on_phase, attempts.watch, asked.rid, pair))
        self.fleet.canary.began(asked.rid, pair)
        try:
            attempt = handoff.run(
                pair,
                asked,
                attempts.deadline,
                on_phase,
                attempts.watch.aborted,
                first_early=attempts.first_early,
                cut=attempts.cut,
            )
            async with aclosing(attempt) as deltas:
                yield deltas
        except (WorkerDied, TransferFailed) as error:
            self._try_again_or_raise(attempts, pair, error)
        except PdEagleError as error:
            level = logging.DEBUG if error.status < 500 else logging.WARNING
            logger.log(level, "request %s failed on %s: %s", asked.rid, pair.name, error)
            raise
        finally:
            turn.release()
            attempts.end(asked.rid)
            self.fleet.canary.ended(asked.rid)

    def _on_phase(
        self, watch: RequestWatch, rid: str, pair: Pair, phase: str, took_s: float
    ) -> None:
        watch.phase(phase, took_s)
        if phase == "first_delta":  # of decode: the KV has come over the link
            self.fleet.canary.first_token(rid, pair)

    def _try_again_or_raise(self, attempts: Attempts, pair: Pair, error: PdEagleError) -> None:
        """Return if another attempt is to follow the one that `error` ended on `pair`."""
        if isinstance(error, TransferFailed):
            self.fleet.canary.doubt(pair)
        attempts.note_failure(pair)
        if words := attempts.suspicion.convicted_by:
            raise self._convict(attempts.request, words)
        rid = attempts.request.rid
        if why := attempts.why_no_more(stopping=self.status == "draining"):
            logger.warning("request %s fails: %s; %s", rid, error, why)
            raise type(error)(f"{error}; not tried elsewhere: {why}")
        resumes = attempts.answering
        self.resumed += resumes
        self.retried += not resumes
        verb = "resumed" if resumes else "tried again"
        logger.warning("request %s is %s on another pair: %s", rid, verb, error)
        attempts.watch.again("resume" if resumes else "retry", error)

    def _convict(self, request: Request, words: str) -> EngineCrashed:
        logger.error("request %s crashes engines and is not tried again: %s", request.rid, words)
        self._culprits.convict(request, words)
        return EngineCrashed(f"the request crashed an engine: {words}")

    def _count_open(self, change: int) -> None:
        self.open += change
        if self.open:
            self._idle.clear()
        else:
            self._idle.set()

    # --- what is checked before

    def refuse_if_full(self) -> None:
        """Raise what `stream` would raise for any request, before work is put into reading it."""
        self._refuse_unless_serving()
        self.admission.refuse_if_full()

    def _refuse_unless_serving(self) -> None:
        if self.status in ("draining", "failed") or self.fleet.limits is None:
            raise NotServing(f"the service is {self.status}")

    def check(self, request: Request) -> int:
        """Return the KV tokens that `request` is taken to need; raises `InvalidRequest`."""
        cost = gate.check(request, self.limits)
        if self.eagle_rules is not None:
            self.eagle_rules.check(request)
        return cost

    def _timeout_s(self, request: Request) -> float:
        longest = self._policy.request_timeout_s
        return longest if request.timeout_s is None else min(request.timeout_s, longest)

    # --- what it says of its roles and of drafts

    def expected_speedup(self, worker: Worker) -> float | None:
        """Return what EAGLE's drafts are expected to be worth on `worker` now; None if unknown."""
        if (load := worker.load) is None:
            return None
        length = load.spec_accept_length
        return speculation.speedup(self.plan.tree, self.plan.kind, load.running, length)

    def watch_roles(self) -> Bottleneck | None:
        """Look at both roles' queues, once a second; return a bottleneck that is new."""
        queued = {
            role: [
                worker.load.queued + self.windows.held(worker.name)
                for worker in self.workers
                if worker.role == role and worker.load is not None
            ]
            for role in ("prefill", "decode")
        }
        news = self._roles.note(queued["prefill"], queued["decode"])
        return self._roles.found if news else None

    @property
    def bottleneck(self) -> Bottleneck | None:
        return self._roles.found
