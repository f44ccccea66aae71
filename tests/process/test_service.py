"""A whole plan in real processes: start, serve, refuse, fail, drain, stop."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from asyncio import create_task
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from pd_eagle.errors import (
    DeadlineExceeded,
    EngineError,
    NotServing,
    PdEagleError,
    StartFailed,
    WorkerDied,
)
from pd_eagle.requests.router import Pair
from tests.process import processes
from tests.process.stage import ONE_TRY, Stage, request, text_of
from tests.scripted import Act, Script, answer_to

if TYPE_CHECKING:
    from pd_eagle.messages import Role
    from pd_eagle.requests.service import Service
    from pd_eagle.workers.launch import Launcher, WorkerProcess

ONE_PAIR: tuple[Role, ...] = ("prefill", "decode")
UNIFIED: tuple[Role, ...] = ("unified",)


def pids(service: Service) -> list[int]:
    return [worker.pid for worker in service.workers if worker.pid is not None]


async def test_every_pair_carries_a_token_before_the_service_is_ready(stage: Stage) -> None:
    service = await stage.service("prefill", "prefill", "decode", "decode", "decode")
    assert service.status == "ready"
    for prefill in range(2):
        for decode in range(3):
            await stage.journal.line(f"prefill-{prefill}.decode-{decode} carried a token")
    assert service.inflight == 0
    assert [worker.inflight for worker in service.workers] == [0] * 5


async def test_answers_are_the_same_with_one_engine_and_with_a_pair(forked: Stage) -> None:
    for roles in (UNIFIED, ONE_PAIR):
        service = await forked.service(*roles)
        prompts = [f"prompt {n}" for n in range(24)]
        texts = await asyncio.gather(*(text_of(service.stream(request(p))) for p in prompts))
        assert texts == [answer_to(p) for p in prompts]
        assert service.inflight == 0
        await service.stop()


async def test_requests_go_to_every_worker_in_turn(forked: Stage) -> None:
    service = await forked.service("prefill", "prefill", "decode", "decode", "decode")
    sent = [request("x", 1) for _ in range(6)]
    for one in sent:
        await text_of(service.stream(one))
    for n, one in enumerate(sent):
        await forked.journal.line(f"prefill-{n % 2} .* got {one.rid}")
        await forked.journal.line(f"decode-{n % 3} .* got {one.rid}")


async def test_a_prefill_window_lets_short_prompts_go_first_and_is_empty_after_all(
    forked: Stage,
) -> None:
    policy = dataclasses.replace(ONE_TRY, prefill_window_tokens=20)
    scripts = {"prefill-0": Script(acts={"h": Act("hang"), "f": Act("fail")})}
    service = await forked.service(*ONE_PAIR, scripts=scripts, policy=policy)
    hanging = request("h" + "x" * 19)
    first = create_task(text_of(service.stream(hanging)))
    await forked.journal.line(f"prefill-0 .* hang {hanging.rid}")
    waiting = {name: request(name) for name in ("l" * 19, "m" * 9, "s")}
    texts = {n: create_task(text_of(service.stream(one))) for n, one in waiting.items()}
    failing = create_task(text_of(service.stream(request("f"))))
    leaving = create_task(text_of(service.stream(request("g"))))
    window = service.windows.by_worker["prefill-0"]
    for _ in range(20):
        await asyncio.sleep(0)  # each comes as far as it can
    assert window.held == len(texts) + 2
    assert [worker.inflight for worker in service.workers] == [1, 1]  # of the one that hangs
    leaving.cancel()
    first.cancel()
    for name, text in texts.items():
        assert await text == answer_to(name)
    with pytest.raises(EngineError, match="the script says so"):
        await failing
    for one in waiting.values():
        await forked.journal.line(f"prefill-0 .* got {one.rid}")
    got = [
        name
        for line in forked.journal.lines
        for name, one in waiting.items()
        if "prefill-0" in line and f"got {one.rid}" in line
    ]
    assert got[-1] == "l" * 19  # it came first
    assert (window.outstanding, window.held, service.inflight) == (0, 0, 0)
    await forked.idle(*service.workers)


async def test_closing_a_stream_ends_both_halves(forked: Stage) -> None:
    hang = Script(acts={"h": Act("hang", after=1)})
    service = await forked.service(
        *ONE_PAIR,
        scripts={"prefill-0": Script(acts={"p": Act("hang")}), "decode-0": hang},
    )
    midway, waiting = request("h"), request("p")
    async with aclosing(service.stream(midway)) as deltas:
        await anext(deltas)
        assert service.inflight == 1
    assert service.inflight == 0
    await forked.idle(*service.workers)
    task = create_task(text_of(service.stream(waiting)))
    await forked.journal.line(f"prefill-0 .* hang {waiting.rid}")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert service.inflight == 0
    await forked.idle(*service.workers)


async def test_a_dead_prefill_worker_fails_what_waits_for_it(forked: Stage) -> None:
    # the decode engine, as SGLang's, waits for ever for KV that nobody hands over
    scripts = {"prefill-0": Script(acts={"d": Act("die")})}
    service = await forked.service("prefill", "decode", scripts=scripts)
    with pytest.raises(WorkerDied, match="prefill-0: its process ended"):
        await text_of(service.stream(request("d")))
    await forked.idle(service.workers[1])
    await forked.journal.line("prefill-0: given up after 0 restarts")
    assert service.status == "failed"
    with pytest.raises(NotServing, match="the service is failed"):
        await text_of(service.stream(request("x")))


async def test_a_failed_prefill_ends_the_request_and_not_the_worker(forked: Stage) -> None:
    scripts = {"prefill-0": Script(acts={"f": Act("fail")})}
    service = await forked.service("prefill", "decode", scripts=scripts)
    with pytest.raises(EngineError, match="the script says so"):
        await text_of(service.stream(request("f")))
    await forked.idle(*service.workers)
    assert await text_of(service.stream(request("x"))) == answer_to("x")


async def test_a_dead_decode_worker_leaves_the_others_serving(forked: Stage) -> None:
    scripts = {"decode-1": Script(acts={"d": Act("die", after=2)})}
    service = await forked.service("prefill", "decode", "decode", scripts=scripts)
    assert await text_of(service.stream(request("x"))) == answer_to("x")
    with pytest.raises(WorkerDied, match="decode-1: its process ended"):
        await text_of(service.stream(request("d")))
    assert service.status == "degraded"
    for _ in range(4):
        assert await text_of(service.stream(request("x"))) == answer_to("x")


FAILS_TO_START = [
    ("raise", "RuntimeError: the script says that the engine cannot start"),
    ("exit", "its process ended while it was starting"),
    ("die", "its process ended while it was starting"),
]


@pytest.mark.parametrize(("start", "why"), FAILS_TO_START)
async def test_one_failed_start_ends_the_whole_plan_at_once(
    stage: Stage, start: str, why: str
) -> None:
    failing = Script(start=start, last_words=["these are my last words"])  # type: ignore[arg-type]
    scripts = {"decode-1": failing, "decode-0": Script(start="hang")}
    service = stage.new_service("prefill", "decode", "decode")
    with pytest.raises(StartFailed) as caught:
        await stage.start_service(service, scripts)
    assert str(caught.value).startswith(f"decode-1 could not start: {why}")
    assert "  decode-1 | these are my last words" in str(caught.value).splitlines()
    assert service.status == "failed"
    assert pids(service) == []


async def test_a_worker_that_is_not_launched_yet_is_not_started_either(forked: Stage) -> None:
    """The first worker fails while the second still waits for its turn at the launcher."""
    launcher = SlowSecond(forked.launcher)
    stage = Stage(launcher, forked.folder, forked.journal)
    service = stage.new_service("prefill", "decode")
    scripts = {"prefill-0": Script(start="raise"), "decode-0": Script(start="hang")}
    with pytest.raises(StartFailed, match="prefill-0 could not start"):
        await stage.start_service(service, scripts)
    assert pids(service) == []
    await stage.close()


async def test_a_start_that_is_cancelled_leaves_nothing(stage: Stage) -> None:
    service = stage.new_service("prefill", "decode")
    starting = create_task(stage.start_service(service, {"decode-0": Script(start="hang")}))
    await stage.journal.line("prefill-0: starting → ready")
    await stage.journal.line("starting for ever")
    started = pids(service)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not processes.still_alive(started, timeout_s=2)


async def test_a_failed_probe_fails_the_start(forked: Stage) -> None:
    scripts = {"decode-0": Script(acts={"\0": Act("fail", code="transfer_failed")})}
    service = forked.new_service("prefill", "decode")
    with pytest.raises(PdEagleError, match="the script says so"):
        await forked.start_service(service, scripts)
    assert service.status == "failed"
    assert pids(service) == []


async def test_a_drain_lets_requests_end_and_refuses_new_ones(forked: Stage) -> None:
    scripts = {"decode-0": Script(acts={"s": Act(pause_s=0.01)})}
    service = await forked.service("prefill", "decode", scripts=scripts)
    running = create_task(text_of(service.stream(request("s", 20))))
    await forked.journal.line("decode-0 .* got .*")
    stopping = create_task(service.stop(drain_timeout_s=10))
    await asyncio.sleep(0)
    assert service.status == "draining"
    with pytest.raises(NotServing, match="the service is draining"):
        await text_of(service.stream(request("x")))
    assert await running == answer_to("s", 20)
    assert await stopping is True


async def test_what_outlives_the_drain_is_cut_off_with_an_error(forked: Stage) -> None:
    scripts = {"decode-0": Script(acts={"h": Act("hang", after=1)})}
    service = await forked.service("prefill", "decode", scripts=scripts)
    deltas = service.stream(request("h"))
    await anext(deltas)
    waiting = create_task(anext(deltas))
    assert await service.stop(drain_timeout_s=0.05) is False
    with pytest.raises(NotServing, match="decode-0: it is stopping"):
        await waiting
    assert service.inflight == 0


async def test_a_scheduler_killed_from_outside_fails_its_worker(forked: Stage) -> None:
    service = await forked.service(
        "prefill", "decode", "decode", scripts={"decode-0": Script(schedulers=1)}
    )
    decode = service.workers[1]
    assert decode.info is not None
    os.kill(decode.info.scheduler_pids[0], signal.SIGKILL)
    await forked.journal.line(r"decode-0: given up .* its scheduler \(pid \d+\) died")
    assert decode.state == "failed"
    assert service.status == "degraded"
    assert await text_of(service.stream(request("x"))) == answer_to("x")


async def test_a_request_has_its_own_deadline(forked: Stage) -> None:
    scripts = {"decode-0": Script(acts={"h": Act("hang", after=1)})}
    service = await forked.service("prefill", "decode", scripts=scripts)
    pair = Pair(*service.workers)
    with pytest.raises(DeadlineExceeded, match="the request's time is up"):
        await forked.handoff(pair, request("h"), timeout_s=0.1)
    await forked.idle(*service.workers)


class SlowSecond:
    """A launcher whose second launch waits until it may go on."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._count = 0
        self.may_go_on = asyncio.Event()

    async def launch(self) -> WorkerProcess:
        self._count += 1
        if self._count == 2:
            await self.may_go_on.wait()
        return await self._launcher.launch()

    def stop_forking(self, failure: str) -> bool:
        return self._launcher.stop_forking(failure)

    async def close(self) -> None:
        """Leave the launcher to its owner."""


# --- what every engine is told


async def test_every_engine_is_told_and_says_what_it_did(forked: Stage) -> None:
    service = await forked.service(*ONE_PAIR)
    flushed = await service.fleet.control("flush_cache", timeout_s=5)
    done = {"success": True, "message": ""}
    assert flushed == {"prefill-0": done, "decode-0": done}
    await service.fleet.control("start_profile", {"num_steps": 2}, timeout_s=5)
    await forked.journal.line("decode-0 .* start_profile .*'num_steps': 2")
    with pytest.raises(EngineError, match=r"0: stop_profile: RuntimeError: no profile was started"):
        await service.fleet.control("stop_profile", timeout_s=5)
    with pytest.raises(EngineError, match="what the engine said cannot be sent"):
        await service.fleet.control("start_profile", {"output_dir": "/unsendable"}, timeout_s=5)
    assert await text_of(service.stream(request("a"))) == answer_to("a")


async def test_an_engine_that_does_not_answer_is_waited_for_no_longer(forked: Stage) -> None:
    service = await forked.service(*UNIFIED)
    os.kill(pids(service)[0], signal.SIGSTOP)
    with pytest.raises(DeadlineExceeded, match=r"flush_cache: not done within 0\.1 s"):
        await service.fleet.control("flush_cache", timeout_s=0.1)
    waiting = create_task(service.fleet.control("get_server_info", timeout_s=20))
    await asyncio.sleep(0)
    os.kill(pids(service)[0], signal.SIGKILL)
    with pytest.raises(WorkerDied):
        await waiting
    with pytest.raises(NotServing, match="flush_cache: the service is"):
        await service.fleet.control("flush_cache", timeout_s=5)
