"""Which links are probed, which probes count, and which half of a broken link is restarted."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest

from pd_eagle.errors import DeadlineExceeded, TransferFailed
from pd_eagle.messages import EngineInfo, Load
from pd_eagle.requests import canary as module
from pd_eagle.requests.canary import Canary
from pd_eagle.requests.router import Pair, Router

if TYPE_CHECKING:
    from collections.abc import Callable

    from pd_eagle.messages import Role
    from pd_eagle.workers.worker import Worker

INTERVAL_S = 0.05
FRESH = 10.0**12  # a snapshot of the far future is not stale


@dataclass(eq=False)
class FakeWorker:
    name: str
    state: str = "ready"
    heard_at: float = float("inf")
    load: Load | None = None
    info: EngineInfo = field(default_factory=lambda: EngineInfo(1, [], 1000, 1000, 10))
    died: list[str] = field(default_factory=list)

    @property
    def role(self) -> Role:
        return cast("Role", self.name.partition("-")[0])

    def declare_dead(self, how: str) -> None:
        self.died.append(how)
        self.state = "restarting"


class Scene:
    """Workers, their links, and which of these are silent."""

    def __init__(self, *names: str) -> None:
        self.workers = [FakeWorker(name) for name in names]
        self.router = Router(cast("list[Worker]", self.workers))
        self.silent: Callable[[Pair], bool] = lambda pair: False
        self.error: Exception = DeadlineExceeded("no token")
        self.probes: list[str] = []
        self.limits: list[float] = []
        self.takes_s = 0.0
        self.canary = Canary(
            self.router,
            cast("list[Worker]", self.workers),
            self._probe,
            lambda: None,
            INTERVAL_S,
        )

    async def _probe(self, pair: Pair, limit_s: float) -> None:
        self.probes.append(pair.name)
        self.limits.append(limit_s)
        await asyncio.sleep(self.takes_s)
        if self.silent(pair):
            raise self.error

    def worker(self, name: str) -> FakeWorker:
        return next(worker for worker in self.workers if worker.name == name)

    @property
    def pair(self) -> Pair:
        return self.router.all_pairs()[0]

    @property
    def restarted(self) -> list[str]:
        return [worker.name for worker in self.workers for _ in worker.died]

    async def rounds(self, count: int = 1) -> None:
        for _ in range(count):
            await self.canary._round()

    async def until_restarted(self) -> str:
        for _ in range(20):
            await self.rounds()
            if self.restarted:
                return self.restarted[-1]
        raise AssertionError("nothing was restarted")


@pytest.fixture
def one() -> Scene:
    return Scene("prefill-0", "decode-0")


@pytest.fixture
def four() -> Scene:
    return Scene("prefill-0", "prefill-1", "decode-0", "decode-1")


async def test_who_carries_tokens_is_not_probed_and_who_does_not_is(one: Scene) -> None:
    one.canary.carried(one.pair)
    await one.rounds(3)
    assert one.probes == []
    await asyncio.sleep(INTERVAL_S)
    await one.rounds(3)
    assert one.probes == ["prefill-0+decode-0"]


async def test_an_open_request_is_no_sign_of_a_link_that_works(one: Scene) -> None:
    one.canary.began("stuck", one.pair)
    await asyncio.sleep(2 * INTERVAL_S)
    one.silent = lambda pair: True
    await one.rounds()
    assert one.router.broken == {"prefill-0+decode-0"}


async def test_a_request_that_waits_long_for_its_first_token_is_a_doubt(one: Scene) -> None:
    one.canary._interval_s = 1000.0
    one.canary.carried(one.pair)
    one.canary.began("a", one.pair)
    await one.rounds()
    assert one.probes == []
    await asyncio.sleep(INTERVAL_S)
    await one.rounds(3)
    assert one.probes == ["prefill-0+decode-0"]  # and its answer settles it


async def test_a_request_that_ends_without_a_first_token_is_a_doubt(one: Scene) -> None:
    one.canary._interval_s = 1000.0
    one.canary.carried(one.pair)
    one.canary.began("at once", one.pair)
    one.canary.ended("at once")  # its client had no patience: that says nothing
    one.canary.began("answered", one.pair)
    one.canary.began("stuck", one.pair)
    await asyncio.sleep(0.01)
    one.canary.first_token("answered", one.pair)
    await asyncio.sleep(INTERVAL_S)
    one.canary.ended("answered")
    await one.rounds()
    assert one.probes == []
    one.canary.began("stuck", one.pair)
    await asyncio.sleep(INTERVAL_S)
    one.canary.ended("stuck")
    await one.rounds()
    assert one.probes == ["prefill-0+decode-0"]


@pytest.mark.parametrize(
    ("name", "change", "excused"),
    [
        ("prefill-0", {"load": Load(FRESH)}, False),
        ("prefill-0", {"load": Load(FRESH, waiting=3, awaiting_partner=3)}, False),
        ("prefill-0", {"load": Load(FRESH, waiting=3, queued=1)}, True),
        ("prefill-0", {"load": Load(time.time() - 60)}, True),  # in a long step
        ("decode-0", {"heard_at": 0.0}, True),  # answers no pings
        ("decode-0", {"load": Load(FRESH, running=2, used_tokens=950)}, True),
        ("decode-0", {"load": Load(FRESH, running=2, used_tokens=300)}, False),
        ("decode-0", {"load": Load(FRESH, running=0, used_tokens=950)}, False),  # of the stuck
    ],
)
async def test_a_silence_counts_only_where_a_worker_has_nothing_else_to_do(
    one: Scene, name: str, change: dict[str, object], *, excused: bool
) -> None:
    one.silent = lambda pair: True
    one.canary._carried_at[one.pair.name] = time.monotonic() - 10
    for attribute, value in change.items():
        setattr(one.worker(name), attribute, value)
    await one.rounds()
    assert one.probes
    assert bool(one.router.broken) is not excused


async def test_a_failure_that_says_so_counts_whatever_else_is_done(one: Scene) -> None:
    one.silent, one.error = (lambda pair: True), TransferFailed("it says so")
    one.worker("prefill-0").load = Load(FRESH, queued=1)
    await one.rounds()
    assert one.router.broken


async def test_being_busy_is_no_excuse_for_ever(
    one: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LONGEST_EXCUSE_S", 0.2)
    one.silent = lambda pair: True
    one.worker("prefill-0").load = Load(FRESH, queued=1)
    one.canary.carried(one.pair)
    await asyncio.sleep(0.1)
    await one.rounds()
    assert not one.router.broken
    await asyncio.sleep(0.2)
    await one.rounds()
    assert one.router.broken


async def test_the_limit_grows_with_what_probes_took(
    one: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    await one.rounds()
    assert one.limits == [10.0]
    one.canary._took_s.append(7.0)
    assert one.canary._limit_s() == 35.0
    one.canary._took_s.append(70.0)
    assert one.canary._limit_s() == 60.0
    one.canary._took_s.extend([0.1] * 20)
    assert one.canary._limit_s() == 10.0


async def test_of_one_pair_decode_is_restarted_first_and_then_prefill(one: Scene) -> None:
    one.silent = lambda pair: True
    assert await one.until_restarted() == "decode-0"
    assert len(one.probes) == 2
    one.worker("decode-0").state = "ready"
    one.worker("decode-0").died.clear()
    assert await one.until_restarted() == "prefill-0"


async def test_a_prefill_that_has_not_heard_its_partner_is_restarted_first(one: Scene) -> None:
    one.silent = lambda pair: True
    one.worker("prefill-0").load = Load(FRESH, waiting=1, awaiting_partner=1)
    assert await one.until_restarted() == "prefill-0"


@pytest.mark.parametrize("name", ["prefill-0", "prefill-1", "decode-0", "decode-1"])
async def test_the_half_that_fails_with_all_its_partners_is_restarted(
    four: Scene, name: str
) -> None:
    four.silent = lambda pair: pair.has(name)
    assert await four.until_restarted() == name


async def test_the_prefill_of_many_decodes_is_restarted_first() -> None:
    scene = Scene("prefill-0", "decode-0", "decode-1", "decode-2")
    scene.silent = lambda pair: True
    assert await scene.until_restarted() == "prefill-0"


async def test_others_are_asked_before_a_half_is_chosen(four: Scene) -> None:
    four.canary._interval_s = 1000.0
    for pair in four.router.all_pairs():
        four.canary.carried(pair)
    four.silent = lambda pair: pair.has("decode-0")
    four.canary.doubt(four.pair)  # of prefill-0 and decode-0, whose other links nobody doubts
    assert await four.until_restarted() == "decode-0"
    assert sorted(set(four.probes)) == [
        "prefill-0+decode-0",
        "prefill-0+decode-1",
        "prefill-1+decode-0",
    ]


async def test_one_worker_at_a_time(four: Scene) -> None:
    four.silent = lambda pair: True
    await four.until_restarted()
    await four.rounds(5)
    assert len(four.restarted) == 1  # while it starts no other follows


@pytest.mark.parametrize("state", ["starting", "restarting", "suspect"])
async def test_nothing_is_restarted_and_nothing_new_probed_beside_a_start(
    four: Scene, state: str
) -> None:
    four.worker("decode-1").state = state
    four.router.mark_broken("prefill-0+decode-0")
    four.silent = lambda pair: True
    await four.rounds(5)
    assert set(four.probes) == {"prefill-0+decode-0"}  # it may have come back
    assert four.restarted == []


async def test_a_defect_of_the_probe_ends_no_watching(one: Scene) -> None:
    one.silent, one.error = (lambda pair: True), ZeroDivisionError("a defect")
    one.canary.start()
    try:
        while len(one.probes) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    finally:
        await one.canary.stop()
