"""The service's checks and judgement; what it does with real workers is in tests/process."""

from __future__ import annotations

import asyncio
import dataclasses
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from pd_eagle.errors import ContextLengthExceeded, InvalidRequest, NotServing, Overloaded
from pd_eagle.front import Front
from pd_eagle.messages import EngineInfo, Load, Request, new_rid
from pd_eagle.plan import measured
from pd_eagle.plan.tuning import Tree
from pd_eagle.requests.policy import ServicePolicy
from pd_eagle.requests.service import Service
from tests.process.stage import plan_of

if TYPE_CHECKING:
    from pd_eagle.messages import Role
    from pd_eagle.requests.fleet import Status
    from pd_eagle.workers.worker_state import State

INFO = EngineInfo(
    pid=1,
    scheduler_pids=[2],
    max_total_tokens=150,
    context_length=100,
    vocab_size=256,
)


def info(**other: int) -> EngineInfo:
    return msgspec.structs.replace(INFO, **other)


def service_of(*infos: EngineInfo, policy: ServicePolicy | None = None) -> Service:
    """Return a service with one prefill worker and a decode worker for each further info."""
    decode: list[Role] = ["decode"] * (len(infos) - 1)
    service = Service(plan_of("prefill", *decode), policy or ServicePolicy())
    for worker, of_worker in zip(service.workers, infos, strict=True):
        worker.info, worker.state = of_worker, "ready"
    service.fleet.learn_limits()
    service._set_admission_limits()
    service.fleet.update()
    return service


def request(ids: list[int], **params: Any) -> Request:
    return Request(new_rid(), ids, params)


def test_rids_are_never_prefixes_of_another() -> None:
    rids = {new_rid() for _ in range(1000)}
    assert len(rids) == 1000
    assert {len(rid) for rid in rids} == {32}


# --- what is checked before anything is sent

FITS = [
    ([0], {}),
    ([255], {"max_new_tokens": 99}),
    ([1] * 99, {}),
    ([1] * 99, {"max_new_tokens": 1}),
    ([1] * 50, {"max_new_tokens": 50}),
    ([1] * 99, {"max_new_tokens": None}),
]
REFUSED = {
    "nothing": ([], {}, InvalidRequest, "the prompt is empty: wanted at least one token"),
    "beyond the vocabulary": ([1, 256], {}, InvalidRequest, "token id 256 .* wanted 0 to 255"),
    "far beyond": ([2**40], {}, InvalidRequest, "token id 1099511627776 .* wanted 0 to 255"),
    "negative": ([1, -1, 999], {}, InvalidRequest, "token id -1 in the prompt"),
    "as long as the context": (
        [1] * 100,
        {},
        ContextLengthExceeded,
        "has 100 .* fewer than .* 100",
    ),
    "too long an answer": (
        [1] * 50,
        {"max_new_tokens": 51},
        ContextLengthExceeded,
        "50 prompt tokens and 51 new tokens: wanted at most the context's 100",
    ),
    "a huge answer": ([1], {"max_new_tokens": 10**12}, ContextLengthExceeded, "at most"),
    "a length that is no number": ([1], {"max_new_tokens": "8"}, InvalidRequest, "max_new_tokens"),
    "half a token": ([1], {"max_new_tokens": 1.5}, InvalidRequest, "max_new_tokens"),
    "fewer than no tokens": ([1], {"max_new_tokens": -1}, InvalidRequest, "max_new_tokens"),
}


@pytest.mark.parametrize(("ids", "params"), FITS)
def test_what_fits_is_let_through(ids: list[int], params: dict[str, Any]) -> None:
    service_of(INFO, INFO).check(request(ids, **params))


@pytest.mark.parametrize(("ids", "params", "error", "message"), REFUSED.values(), ids=REFUSED)
async def test_what_an_engine_would_die_of_is_refused(
    ids: list[int], params: dict[str, Any], error: type[Exception], message: str
) -> None:
    service = service_of(INFO, INFO)
    with pytest.raises(error, match=message):
        await anext(service.stream(request(ids, **params)))
    assert (service.open, service.inflight) == (0, 0)


@pytest.mark.parametrize(
    ("infos", "ids", "new_tokens"),
    [
        ((INFO, info(context_length=40)), 41, 1),
        ((info(context_length=40), INFO), 41, 1),
        ((INFO, info(max_total_tokens=60)), 50, 11),
        ((info(max_total_tokens=60), INFO), 50, 11),
        ((INFO, INFO, info(max_total_tokens=60)), 50, 11),
        # the smallest context and the smallest pool need not be the same engine's
        ((info(context_length=40), info(max_total_tokens=60)), 41, 1),
        ((info(context_length=40), info(max_total_tokens=30)), 20, 11),
    ],
)
def test_the_smallest_engine_decides(
    infos: tuple[EngineInfo, ...], ids: int, new_tokens: int
) -> None:
    with pytest.raises(ContextLengthExceeded):
        service_of(*infos).check(request([1] * ids, max_new_tokens=new_tokens))


def test_the_smallest_vocabulary_decides() -> None:
    with pytest.raises(InvalidRequest, match="token id 200 in the prompt: wanted 0 to 99"):
        service_of(info(vocab_size=100), info(max_total_tokens=90)).check(request([200]))


# --- how it is

JUDGED: list[tuple[tuple[State, ...], Status]] = [
    (("ready", "ready", "ready"), "ready"),
    (("ready", "ready", "suspect"), "degraded"),
    (("ready", "ready", "restarting"), "degraded"),
    (("ready", "ready", "failed"), "degraded"),
    (("ready", "restarting", "restarting"), "starting"),
    (("restarting", "ready", "ready"), "starting"),
    (("failed", "ready", "ready"), "failed"),
    (("ready", "failed", "failed"), "failed"),
    (("failed", "ready", "restarting"), "starting"),
]


@pytest.mark.parametrize(("states", "status"), JUDGED)
def test_the_status_follows_the_workers(states: tuple[State, ...], status: Status) -> None:
    service = service_of(INFO, INFO, INFO)
    for worker, state in zip(service.workers, states, strict=True):
        worker.state = state
    service.fleet.update()
    assert service.status == status


def test_a_broken_link_is_not_the_whole_plan() -> None:
    service = service_of(INFO, INFO, INFO)
    service.fleet.router.mark_broken("prefill-0+decode-0")
    service.fleet.update()
    assert service.status == "degraded"


def test_a_link_that_broke_once_keeps_nothing_alive() -> None:
    service = service_of(INFO, INFO, INFO)
    service.fleet.router.mark_broken("prefill-0+decode-0")
    for worker in service.workers:
        worker.state = "failed"
    service.fleet.update()
    assert service.status == "failed"
    assert service.fleet.unserved_s > 0


def test_while_workers_restart_a_failure_is_not_final_before_a_start_could_be_over() -> None:
    service = service_of(INFO, INFO, INFO)
    service.fleet.supervisor.longest_start_s = 100.0
    for worker in service.workers:
        worker.state = "failed"
    service.fleet.update()
    assert service.fleet._unserved_since is not None
    service.fleet._unserved_since -= 60.0
    assert service.fleet.failed_share(50.0) > 1
    service.workers[0].state = "restarting"
    assert 0.29 < service.fleet.failed_share(50.0) < 0.5
    assert service.fleet.failed_share(300.0) < 0.21


# --- the door


async def test_a_service_that_has_not_started_takes_nothing() -> None:
    service = Service(plan_of("unified"), ServicePolicy())
    with pytest.raises(NotServing, match="the service is starting"):
        await anext(service.stream(request([1])))
    with pytest.raises(NotServing, match="the service is starting"):
        service.refuse_if_full()


async def test_a_service_that_stops_takes_nothing_more() -> None:
    service = service_of(INFO, INFO)
    await service.stop()
    with pytest.raises(NotServing, match="the service is draining"):
        await anext(service.stream(request([1])))


@pytest.mark.parametrize(
    ("max_inflight", "pool", "limit"), [(None, 150, 8), (None, 25600, 100), (3, 25600, 3)]
)
def test_how_much_may_run_follows_the_pool(max_inflight: int | None, pool: int, limit: int) -> None:
    one = info(max_total_tokens=pool)
    service = service_of(one, one, policy=ServicePolicy(max_inflight=max_inflight))
    assert service.admission.limits.max_inflight == limit
    assert service.admission.limits.max_queue == 4 * limit


async def test_what_is_too_much_is_refused_at_once() -> None:
    service = service_of(INFO, INFO, policy=ServicePolicy(max_inflight=1, max_queue=1))
    for worker in service.workers:
        worker.state = "restarting"  # nobody answers: what is let in, waits
    service.fleet.status = "degraded"
    streams = [service.stream(request([1], max_new_tokens=1)) for _ in range(3)]
    running, waiting = [asyncio.ensure_future(anext(stream)) for stream in streams[:2]]
    for _ in range(5):
        await asyncio.sleep(0)
    assert (service.inflight, service.queued, service.open) == (1, 1, 2)
    with pytest.raises(Overloaded):
        service.refuse_if_full()
    with pytest.raises(Overloaded):
        await anext(streams[2])
    for task in (running, waiting):
        task.cancel()
    await asyncio.gather(running, waiting, return_exceptions=True)
    assert (service.inflight, service.queued, service.open) == (0, 0, 0)


# --- what it says of its roles and of drafts


def test_a_role_that_is_waited_for_is_told_once() -> None:
    service = service_of(info(), info(), info())
    prefill, *decode = service.workers
    assert service.watch_roles() is None  # no engine has said anything yet
    for worker in decode:
        worker.load = Load(0.0)
    prefill.load = Load(0.0, queued=3)
    told = [found for _ in range(60) if (found := service.watch_roles())]
    assert [found.role for found in told] == ["prefill"]
    assert service.bottleneck == told[0]
    prefill.load = Load(0.0)
    for _ in range(60):
        assert service.watch_roles() is None
    assert service.bottleneck is None


async def test_prompts_that_the_window_holds_back_wait_for_prefill() -> None:
    service = service_of(info(), info(), policy=ServicePolicy(prefill_window_tokens=10))
    for worker in service.workers:
        worker.load = Load(0.0)
    turns = [service.windows.turn("prefill-0", 10) for _ in range(2)]
    told = [found for _ in range(60) if (found := service.watch_roles())]
    assert [found.role for found in told] == ["prefill"]
    for turn in turns:
        turn.release()


def test_what_drafts_are_worth_is_known_where_costs_are() -> None:
    service = service_of(info(), info())
    decode = service.workers[1]
    assert service.expected_speedup(decode) is None
    tree = Tree(*measured.TREE, "documented")
    service.plan = dataclasses.replace(service.plan, kind="cuda", tree=tree)
    decode.load = Load(0.0, running=64, spec_accept_length=2.5)
    assert service.expected_speedup(decode) == pytest.approx(6569 / 8588)


def test_the_alarm_and_the_bottleneck_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    service = service_of(info(), info())
    tree = Tree(*measured.TREE, "documented")
    service.plan = dataclasses.replace(service.plan, kind="cuda", tree=tree)
    prefill, decode = service.workers
    decode.load = Load(0.0, running=64, spec_accept_length=2.5)
    prefill.load = Load(0.0, queued=1)
    front: Any = SimpleNamespace(
        service=service, deployment=SimpleNamespace(plan=service.plan), _reported={}
    )
    with caplog.at_level("INFO", logger="pd_eagle.front"):
        for _ in range(2):  # the second time nothing is new
            Front.report_acceptance(front)
        for _ in range(60):
            Front.report_bottleneck(front)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "EAGLE acceptance, tokens per verification",
        "EAGLE makes decode-0 slower",
        "prefill is the bottleneck",
    ]
