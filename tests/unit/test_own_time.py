"""Time without the waits for a processor, and the silence of a worker measured in it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, cast

import pytest

from pd_eagle.messages import Load
from pd_eagle.workers import heartbeat, own_time
from pd_eagle.workers.own_time import OwnTime

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pd_eagle.workers.worker import Worker


class Machine:
    """A clock, and the waits of threads that a test makes up."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits = {(1, "1"): 5_000_000_000, (1, "2"): 0}

    def clock(self) -> OwnTime:
        return OwnTime([1], lambda: self.now, lambda pids: dict(self.waits))

    def run(self, seconds: float, *waited_s: float) -> None:
        self.now += seconds
        for key, wait_s in zip(list(self.waits), waited_s, strict=False):
            self.waits[key] += int(wait_s * 1e9)


def test_what_waits_for_nothing_has_the_clocks_time() -> None:
    machine = Machine()
    clock = machine.clock()
    machine.run(7.0)
    assert clock.read() == pytest.approx(7.0)


def test_the_longest_wait_of_a_thread_is_taken_off() -> None:
    machine = Machine()
    clock = machine.clock()
    machine.run(10.0, 2.0, 7.0)
    assert clock.read() == pytest.approx(3.0)
    machine.run(10.0, 8.0, 0.0)  # and of the next look that of another
    assert clock.read() == pytest.approx(5.0)


def test_a_tenth_counts_whatever_they_waited() -> None:
    machine = Machine()
    clock = machine.clock()
    machine.run(100.0, 100.0)
    assert clock.read() == pytest.approx(10.0)


def test_a_look_adds_no_more_than_it_may() -> None:
    machine = Machine()
    clock = machine.clock()
    machine.run(100.0)
    assert clock.read(most_s=3.0) == pytest.approx(3.0)
    machine.run(1.0)
    assert clock.read(most_s=3.0) == pytest.approx(4.0)


@contextlib.contextmanager
def busy(count: int, processor: int) -> Iterator[list[int]]:
    """Let `count` processes want all of one processor."""
    program = (
        f"import os\nos.sched_setaffinity(0, {{{processor}}})\nprint(flush=True)\nwhile 1: pass"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        for _ in range(count)
    ]
    try:
        for one in running:
            assert one.stdout is not None
            one.stdout.readline()
        yield [one.pid for one in running]
    finally:
        for one in running:
            one.kill()
            one.communicate()


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="the kernel does not count")
def test_linux_counts_the_waits_of_real_processes() -> None:
    processor = min(os.sched_getaffinity(0))
    with busy(3, processor) as pids:
        before = own_time.waits_of(pids)
        time.sleep(0.6)
        after = own_time.waits_of(pids)
        assert len(before) == 3
        waited_s = [(after[key] - before[key]) / 1e9 for key in before]
        assert min(waited_s) > 0.1, waited_s  # each has at most half of it
        os.kill(pids[0], signal.SIGSTOP)  # that waits for nothing
        time.sleep(0.2)
        stopped = own_time.waits_of(pids[:1])
        time.sleep(0.3)
        assert own_time.waits_of(pids[:1]) == stopped


def test_children_are_found_and_what_has_ended_is_no_error() -> None:
    with busy(1, min(os.sched_getaffinity(0))) as pids:
        assert set(pids) <= set(own_time.with_children([os.getpid()]))
    assert own_time.waits_of(pids) == {}
    assert own_time.with_children(pids) == pids


# --- the signs of a worker


class Quiet:
    """As much of a worker as its signs of life are read from."""

    pids: tuple[int, ...] = ()

    def __init__(self) -> None:
        self.heard_at = self.generated_at = 0.0
        self.load: Load | None = None
        self.asked = 0

    def ask(self) -> None:
        self.asked += 1


class Listener:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.machine, self.worker = Machine(), Quiet()
        self.signs = heartbeat.Heartbeat(cast("Worker", self.worker))

        async def measure(_: Iterable[int]) -> OwnTime:
            return self.machine.clock()

        monkeypatch.setattr(own_time, "measure", measure)

    async def second(
        self,
        *,
        host: bool = False,
        snapshot: bool = False,
        token: bool = False,
        waited_s: float = 0,
    ) -> float:
        self.machine.run(1.0, waited_s)
        if host or token:
            self.worker.heard_at = self.machine.now
        if token:
            self.worker.generated_at = self.machine.now
        if snapshot:
            self.worker.load = Load(snapshot_at=-self.machine.now)  # its clock is not ours
        return await self.signs.silence_s()


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Listener:
    return Listener(monkeypatch)


async def test_who_speaks_is_not_silent(listener: Listener) -> None:
    for _ in range(5):
        assert await listener.second(host=True, snapshot=True) == 0
    for _ in range(5):  # a scheduler in a long run of steps writes no snapshots
        assert await listener.second(token=True) == 0
    assert listener.worker.asked == 10


async def test_a_silent_host_and_a_silent_scheduler_are_both_found(listener: Listener) -> None:
    await listener.second(host=True, snapshot=True)
    silences = [await listener.second() for _ in range(5)]
    assert silences == pytest.approx([0, 1, 2, 3, 4])
    assert await listener.second(host=True, snapshot=True) == 0
    silences = [await listener.second(host=True) for _ in range(5)]
    assert silences == pytest.approx([0, 1, 2, 3, 4])


async def test_one_that_waits_for_a_processor_is_hardly_silent(listener: Listener) -> None:
    await listener.second(host=True, snapshot=True)
    silences = [await listener.second(waited_s=0.9) for _ in range(31)]
    assert silences[-1] == pytest.approx(3.0)


async def test_an_engine_without_snapshots_is_judged_by_its_host(listener: Listener) -> None:
    await listener.second(host=True)
    assert [await listener.second(host=True) for _ in range(5)] == [0] * 5
