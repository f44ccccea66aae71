"""The async heart: start a plan, admit, check and stream requests, tell how it is, stop.

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
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

from pd_eagle.errors import (
    DeadlineExceeded,
    EngineCrashed,
    NotServing,
    PdEagleError,
    TransferFailed,
    WorkerDied,
)
from pd_eagle.messages import Request, fingerprint
from pd_eagle.plan import speculation
from pd_eagle.requests import bottleneck, gate, handoff
from pd_eagle.requests.admission import Admission, Limits
from pd_eagle.requests.canary import Canary
from pd_eagle.requests.eagle_rules import EagleRules
from pd_eagle.requests.metrics import Metrics
from pd_eagle.requests.prefill_window import PrefillWindows
from pd_eagle.requests.quarantine import Quarantine, Suspicion
from pd_eagle.requests.resume import Progress, first_may_come_early, why_not_resume
from pd_eagle.requests.router import Router
from pd_eagle.workers import own_time
from pd_eagle.workers.own_time import LEAST_SHARE
from pd_eagle.workers.restarts import RestartPolicy
from pd_eagle.workers.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from pd_eagle.messages import Delta, EngineInfo
    from pd_eagle.plan.placement import Plan
    from pd_eagle.requests.bottleneck import Bottleneck
    from pd_eagle.requests.metrics import RequestWatch
    from pd_eagle.requests.prefill_window import Turn
    from pd_eagle.requests.router import Pair
    from pd_eagle.workers.worker import Death, Launch, Worker

logger = logging.getLogger(__name__)

Status = Literal["starting", "ready", "degraded", "draining", "failed"]

#: KV tokens that stand for one request where PD_MAX_INFLIGHT is unset.
_TOKENS_PER_REQUEST = 256
#: How often a request that must have a worker for itself asks whether it is empty.
_EMPTY_POLL_S = 0.1
#: Tries of a pair to carry its first token, before the whole start fails.
_FIRST_PROBES = 5


def new_rid() -> str:
    """Return a request id: 32 hexadecimal digits, so never the prefix of another."""
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePolicy:
    """How requests are treated; the settings of the same names say it in full."""

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


@dataclass(slots=True)
class _Tried:
    """Which pairs have failed one request: `counted` are those that PD_RETRY_LIMIT is about."""

    counted: list[str] = field(default_factory=list)
    last: tuple[str, ...] = ()
    _crashes: int = 0

    def note(self, pair: Pair, suspicion: Suspicion) -> None:
        self.last = (pair.name,)
        if suspicion.crashes > self._crashes:  # the crash may be anybody's: nobody is to fail by it
            self._crashes = suspicion.crashes
        else:
            self.counted.append(pair.name)


class Service:
    """All workers of one plan as one object that answers requests."""

    def __init__(self, plan: Plan, policy: ServicePolicy) -> None:
        self.plan = plan
        self.status: Status = "starting"
        self.decode: Callable[[list[int]], str] | None = None  # set by who has a tokenizer
        self.resumed = 0
        self.retried = 0
        self._policy = policy
        self._supervisor = Supervisor(plan, self._on_change, policy.restarts, self._on_crash)
        self._quarantine = Quarantine(self._supervisor.blame, self._on_change)
        self._router = Router(self.workers)
        self._canary = Canary(
            self._router, self.workers, self.probe, self._on_change, policy.canary_interval_s
        )
        self.windows = PrefillWindows(policy.prefill_window_tokens)
        self._roles = bottleneck.Watch(plan)
        self.admission = Admission(Limits(1, 1, 0, policy.queue_timeout_s))
        self.metrics = Metrics(self)
        self.begin: Callable[[Request], RequestWatch] = self.metrics.begin
        self._limits: EngineInfo | None = None
        self.eagle_rules = EagleRules() if policy.speculative else None
        self._changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.open = 0
        self._unserved_since: float | None = None

    @property
    def workers(self) -> list[Worker]:
        return self._supervisor.workers

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

    # --- life

    async def start(self, launch: Callable[[str, Path], Launch]) -> None:
        """Start all workers and carry a prompt over every pair.

        Raises `StartFailed` when a worker cannot start, or the first error of a pair's token.
        """
        began = time.monotonic()
        try:
            await self._supervisor.start(launch)
            logger.info("%d workers up after %.1f s", len(self.workers), time.monotonic() - began)
            await asyncio.gather(*(self._first_probe(pair) for pair in self._router.all_pairs()))
        except BaseException:
            self.status = "failed"
            await self._supervisor.stop()
            raise
        self._learn_limits()
        self._canary.start()
        self._on_change()
        logger.info("%s after %.1f s", self.status, time.monotonic() - began)

    def _learn_limits(self) -> None:
        infos = [worker.info for worker in self.workers if worker.info is not None]
        serving = [w.info for w in self.workers if w.info is not None and w.role != "prefill"]
        self._limits = gate.smallest(infos)
        tokens = sum(info.max_total_tokens for info in serving)
        inflight = self._policy.max_inflight or max(tokens // _TOKENS_PER_REQUEST, 8)
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
        self.status = "draining"
        if self.open:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), drain_timeout_s)
        drained = self.open == 0
        if not drained:
            logger.warning("%d requests are cut off", self.open)
        self._wake()
        await self._canary.stop()
        await self._supervisor.stop()
        return drained

    def kill(self) -> None:
        """Kill every worker at once, from any thread; `stop` cleans up after it."""
        self._supervisor.kill()

    def _on_change(self) -> None:
        """Take in that a worker or a link is not what it was."""
        if self.status != "draining":
            self.status = self._judge()
        if self.status in ("starting", "failed"):
            self._unserved_since = self._unserved_since or time.monotonic()
        else:
            self._unserved_since = None
        self._wake()

    @property
    def unserved_s(self) -> float:
        """How long no pair has worked, after the first start; 0 while one does, or in a drain."""
        since = self._unserved_since
        return 0.0 if since is None or self._limits is None else time.monotonic() - since

    def failed_share(self, limit_s: float) -> float:
        """Return how much of `limit_s` no pair has worked for; 1 when the time is up.

        While workers are being restarted it is at least twice as long as a start has taken: a large
        model is loaded for minutes, and not sooner by another process.
        """
        if self._supervisor.recovering():
            limit_s = max(limit_s, 2 * self._supervisor.longest_start_s)
        return self.unserved_s / limit_s

    def _on_crash(self, worker: Worker, death: Death) -> bool:
        words, in_prefill = death.crash or death.how, worker.role == "prefill"
        return self._quarantine.crashed(worker.name, death.rids, words, in_prefill=in_prefill)

    def _judge(self) -> Status:
        working, pairs = self._router.working_pairs(), self._router.all_pairs()
        if all(w.state == "ready" for w in self.workers) and len(working) == len(pairs):
            return "ready"
        if working:
            return "degraded"
        # A broken link is probed again as long as both its ends are there.
        return "starting" if self._supervisor.recovering() or pairs else "failed"

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # --- requests

    async def probe(self, pair: Pair, timeout_s: float = 120.0) -> None:
        """Carry a prompt over `pair` and take one step of its decode engine.

        `timeout_s` is of the workers' own time. Raises what the request fails with.
        """
        pids = [pid for worker in pair.workers for pid in worker.pids]
        try:
            await own_time.limited(self._carry(pair, timeout_s / LEAST_SHARE), pids, timeout_s)
        except TimeoutError:
            raise DeadlineExceeded(f"no token within {timeout_s:.0f} s") from None
        self._canary.carried(pair)
        logger.debug("%s carried a token end to end", pair.name)

    async def _carry(self, pair: Pair, timeout_s: float) -> None:
        # The first token is prefill's. And the first step of all may have kernels to compile, on a
        # GPU for ten seconds and more.
        params = {"max_new_tokens": 2, "ignore_eos": True, "temperature": 0}
        request = Request(new_rid(), [0], params)
        deadline = asyncio.get_running_loop().time() + timeout_s
        async with aclosing(handoff.run(pair, request, deadline)) as deltas:
            async for _ in deltas:
                pass

    async def _first_probe(self, pair: Pair) -> None:
        for tries_left in reversed(range(_FIRST_PROBES)):
            try:
                await self.probe(pair)
            except TransferFailed as error:
                if not tries_left:
                    raise
                logger.warning("%s did not carry its first token: %s", pair.name, error)
            else:
                return

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

    def refuse_if_full(self) -> None:
        """Raise what `stream` would raise for any request, before work is put into reading it."""
        self._refuse_unless_serving()
        self.admission.refuse_if_full()

    async def stream(
        self, request: Request, group: object = None, *, patient: bool = False
    ) -> AsyncGenerator[Delta, None]:
        """Yield what the engines add to `request`; the last delta is `finished`.

        Close the generator (`contextlib.aclosing`) to abort. Requests of one `group` wait in one
        line. One that is `patient` is never refused for the length of the queue, and its time
        counts from its turn. Raises `InvalidRequest` before anything is sent to an engine, else a
        `PdEagleError` as the request's one terminal event.
        """
        self._refuse_unless_serving()
        cost = self.check(request)
        self._refuse_a_culprit(request)
        loop = asyncio.get_running_loop()
        timeout_s = self._timeout_s(request)
        last_turn = None if patient else loop.time() + timeout_s
        watch = self.begin(request)
        # One generator down to the handoff: each more would be passed by every token.
        async with self._admitted(request, group, cost, last_turn, watch):
            deadline = last_turn or loop.time() + timeout_s
            progress = Progress(request, self.decode)
            early = self._policy.resume and first_may_come_early(request)
            suspicion, tried = Suspicion(), _Tried()
            rid = request.rid
            try:
                while True:
                    pair, turn = await self._pair_with_room(request, tried, suspicion, deadline)
                    asked = watch.attempt(pair, progress.next_attempt(rid))
                    attempt = handoff.run(
                        pair,
                        asked,
                        deadline,
                        turn.releasing(partial(self._on_phase, watch, rid, pair)),
                        watch.aborted,
                        first_early=early,
                    )
                    self._canary.began(rid, pair)
                    self._quarantine.begin(rid, suspicion)
                    try:
                        async with aclosing(attempt) as deltas:
                            async for delta in deltas:
                                if (seen := progress.add(delta)) is None:
                                    continue
                                watch.delta(len(seen.output_ids))
                                suspicion.tokens += len(seen.output_ids)
                                if suspicion.on_trial:
                                    self._quarantine.progressed(suspicion)
                                if seen.finished:
                                    watch.finished(seen.meta)
                                yield seen
                                if seen.finished:
                                    return
                    except (WorkerDied, TransferFailed) as error:
                        self._note_failure(pair, error)
                        tried.note(pair, suspicion)
                        self._refuse_another_try(request, progress, tried, suspicion, error)
                        watch.again("resume" if progress.begun else "retry", error)
                    except PdEagleError as error:
                        level = logging.DEBUG if error.status < 500 else logging.WARNING
                        logger.log(level, "request %s failed on %s: %s", rid, pair.name, error)
                        raise
                    finally:
                        turn.release()
                        self._quarantine.end_attempt(rid, suspicion)
                        self._canary.ended(rid)
                    rid = new_rid()
            finally:
                self._quarantine.close(suspicion)

    @contextlib.asynccontextmanager
    async def _admitted(
        self,
        request: Request,
        group: object,
        cost: int,
        last_turn: float | None,
        watch: RequestWatch,
    ) -> AsyncGenerator[None, None]:
        """Hold a place for `request`, and tell `watch` how it ended."""
        self._open(1)
        try:
            line = request.rid if group is None else id(group)
            await self.admission.enter(line, cost, last_turn)
            try:
                watch.admitted(len(request.input_ids))
                yield
            finally:
                self.admission.leave(cost)
        except PdEagleError as error:
            watch.failed(error)
            raise
        finally:
            watch.end()
            self._open(-1)

    def _open(self, change: int) -> None:
        self.open += change
        if self.open:
            self._idle.clear()
        else:
            self._idle.set()

    def _on_phase(
        self, watch: RequestWatch, rid: str, pair: Pair, phase: str, took_s: float
    ) -> None:
        watch.phase(phase, took_s)
        if phase == "first_delta":  # of decode: the KV has come over the link
            self._canary.first_token(rid, pair)

    def _note_failure(self, pair: Pair, error: PdEagleError) -> None:
        if isinstance(error, TransferFailed):
            self._canary.doubt(pair)

    def _refuse_another_try(
        self,
        request: Request,
        progress: Progress,
        tried: _Tried,
        suspicion: Suspicion,
        error: PdEagleError,
    ) -> None:
        """Raise `error` where going on elsewhere is not allowed or would not be the same answer."""
        if words := suspicion.convicted_by:
            logger.error(
                "request %s crashes engines and is not tried again: %s", request.rid, words
            )
            if (asked := fingerprint(request)) is not None:
                self._quarantine.remember(asked, words)
            raise EngineCrashed(f"the request crashed an engine that had no other: {words}")
        why = why_not_resume(request) if progress.begun else None
        if progress.begun and not self._policy.resume:
            why = "PD_RESUME is off"
        if self.status == "draining":
            why = "the service is stopping"
        if not self._policy.retry_limit:
            why = "PD_RETRY_LIMIT is 0"
        elif len(tried.counted) > self._policy.retry_limit:
            names = ", ".join(tried.counted)
            why = f"{len(tried.counted)} pairs were tried: {names} (PD_RETRY_LIMIT)"
        if why:
            logger.warning("request %s fails: %s; %s", request.rid, error, why)
            raise type(error)(f"{error}; not tried elsewhere: {why}")
        self.resumed += progress.begun
        self.retried += not progress.begun
        verb = "resumed" if progress.begun else "tried again"
        logger.warning("request %s is %s on another pair: %s", request.rid, verb, error)

    async def _pair_with_room(
        self, request: Request, tried: _Tried, suspicion: Suspicion, deadline: float
    ) -> tuple[Pair, Turn]:
        """Return a pair whose prefill engine has room for the prompt, and the turn that it holds.

        Neither half is sent before: decode would only keep KV for a prompt that waits.
        """
        while True:
            pair = await self._next_pair(tried, suspicion, deadline)
            name = pair.prefill.name if pair.prefill is not None else None
            turn = self.windows.turn(name, len(request.input_ids))
            if turn.granted:
                return pair, turn
            try:
                await turn.wait(deadline)
            except BaseException:
                turn.release()
                raise
            if suspicion.on_trial or self._may_still_serve(pair):
                return pair, turn
            turn.release()

    def _may_still_serve(self, pair: Pair) -> bool:
        """Return whether `pair` would be picked now, after a wait."""
        workers = [pair.decode] if pair.prefill is None else [pair.prefill, pair.decode]
        return pair.name not in self._router.broken and all(
            worker.state == "ready" and worker.name not in self._quarantine.reserved
            for worker in workers
        )

    async def _next_pair(self, tried: _Tried, suspicion: Suspicion, deadline: float) -> Pair:
        """Return a pair, waiting for one that comes back as long as the deadline allows.

        One that must be alone waits for its trial first.
        """
        try:
            async with asyncio.timeout_at(deadline):
                await self._quarantine.take_trial(suspicion)
                while True:
                    changed = self._changed
                    try:
                        pair = self._pick(tried, suspicion)
                    except NotServing:
                        if self.status not in ("starting", "degraded", "ready"):
                            raise
                    else:
                        if not suspicion.on_trial or await self._is_proved(pair):
                            return pair
                    await self._changes(changed, poll=suspicion.on_trial)
        except TimeoutError:
            kind = NotServing if tried.last else DeadlineExceeded
            raise kind("no pair of workers came back before the request's deadline") from None

    def _pick(self, tried: _Tried, suspicion: Suspicion) -> Pair:
        if not suspicion.on_trial:
            return self._router.pick(tried.last, without=self._quarantine.reserved)
        place = next(worker for worker in self.workers if worker.name == suspicion.place)
        ready = [w for w in self.workers if w.role == place.role and w.state == "ready"]
        if place.state == "failed" and ready:  # given up: another takes its place, and is emptied
            place = min(ready, key=lambda worker: worker.inflight)
            self._quarantine.move(suspicion, place.name)
        anywhere = [place.name, *(worker.name for worker in ready if worker is not place)]
        try:
            pair, name = self._router.pick_apart(anywhere, lambda rids: not rids)
        except NotServing:
            if place.state == "ready" and self._quarantine.gives_way(suspicion):
                return self._router.pick()
            pair, name = self._router.pick_apart([place.name], self._quarantine.have_passed)
        self._quarantine.move(suspicion, name)
        return pair

    def _refuse_a_culprit(self, request: Request) -> None:
        if not self._quarantine.has_culprits or (asked := fingerprint(request)) is None:
            return
        if words := self._quarantine.words_about(asked):
            raise EngineCrashed(
                f"the same request crashed an engine that had no other, a short time ago: {words}"
            )

    async def _is_proved(self, pair: Pair) -> bool:
        """Return whether both engines of `pair` have answered since they were started.

        Else one that crashes at anything would make culprits of everybody.
        """
        if all(worker.proved for worker in pair.workers):
            return True
        try:
            await self.probe(pair)
        except PdEagleError as error:
            logger.warning("%s is not fit for a trial: %s", pair.name, error)
            return False
        return True

    async def _changes(self, changed: asyncio.Event, *, poll: bool) -> None:
        """Wait until a worker or a link has changed; with `poll`, for a moment at most."""
        if not poll:
            await changed.wait()
            return
        with contextlib.suppress(TimeoutError):  # nobody tells when a worker has become empty
            async with asyncio.timeout(_EMPTY_POLL_S):
                await changed.wait()

    def check(self, request: Request) -> int:
        """Return the KV tokens that `request` is taken to need; raises `InvalidRequest`."""
        cost = gate.check(request, self.limits)
        if self.eagle_rules is not None:
            self.eagle_rules.check(request)
        return cost

    @property
    def limits(self) -> EngineInfo:
        """What every engine can do; raises `NotServing` before the first have started."""
        if self._limits is None:
            raise NotServing(f"the service is {self.status}")
        return self._limits

    def _timeout_s(self, request: Request) -> float:
        longest = self._policy.request_timeout_s
        return longest if request.timeout_s is None else min(request.timeout_s, longest)

    def _refuse_unless_serving(self) -> None:
        if self.status in ("draining", "failed") or self._limits is None:
            raise NotServing(f"the service is {self.status}")
