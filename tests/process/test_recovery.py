"""Nothing is lost: workers come back, requests are tried again or gone on with elsewhere."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from asyncio import create_task
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from pd_eagle.errors import DeadlineExceeded, NotServing, TransferFailed, WorkerDied
from pd_eagle.messages import Load
from pd_eagle.requests import canary
from pd_eagle.requests.policy import ServicePolicy
from pd_eagle.workers import own_time
from pd_eagle.workers.restarts import RestartPolicy
from tests.process.stage import READY, Stage, request
from tests.scripted import Act, Script, answer_to

if TYPE_CHECKING:
    from pd_eagle.messages import Delta, Request
    from pd_eagle.requests.service import Service
    from tests.process.stage import Scripts

RESTARTS = RestartPolicy(first_delay_s=0.01, longest_delay_s=0.05)
POLICY = ServicePolicy(request_timeout_s=15.0, restarts=RESTARTS)

DIES = Script(acts={"d": Act("die", after=5)})
DIES_AT_ONCE = Script(acts={"d": Act("die")})


async def deltas_of(service: Service, wanted: Request) -> list[Delta]:
    async with aclosing(service.stream(wanted)) as deltas:
        return [delta async for delta in deltas]


def assert_undisturbed(deltas: list[Delta], prompt: str, new_tokens: int = 16) -> None:
    """Assert that a client could not tell `deltas` from those of a run without a failure."""
    assert "".join(delta.text for delta in deltas) == answer_to(prompt, new_tokens)
    assert [token for delta in deltas for token in delta.output_ids] == [
        ord(letter) for letter in answer_to(prompt, new_tokens)
    ]
    assert [delta.finished for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    meta: dict[str, Any] = {}
    for delta in deltas:
        meta |= delta.meta
    assert meta["prompt_tokens"] == len(prompt)
    assert meta["completion_tokens"] == new_tokens
    assert meta["finish_reason"] == {"type": "length", "length": new_tokens}


# --- requests


async def test_an_answer_goes_on_where_its_decode_worker_died(forked: Stage) -> None:
    service = await forked.service(
        "prefill", "decode", "decode", scripts={"decode-0": [DIES, READY]}, policy=POLICY
    )
    # the probes have taken turns too: one of two requests meets the worker that dies
    answers = [await deltas_of(service, request("d")) for _ in range(2)]
    for deltas in answers:
        assert_undisturbed(deltas, "d")
    assert (service.resumed, service.retried, service.open) == (1, 0, 0)


async def test_an_answer_waits_for_its_only_decode_worker(forked: Stage) -> None:
    service = await forked.service(
        "prefill", "decode", scripts={"decode-0": [DIES, READY]}, policy=POLICY
    )
    assert_undisturbed(await deltas_of(service, request("d")), "d")
    assert service.resumed == 1
    decode = service.workers[1]
    assert (decode.state, decode.restarts) == ("ready", 1)
    assert service.status == "ready"


async def test_an_answer_that_prefill_has_begun_goes_on(forked: Stage) -> None:
    scripts: dict[str, Scripts] = {"decode-0": [Script(acts={"h": Act("hang")}), READY]}
    service = await forked.service("prefill", "decode", scripts=scripts, policy=POLICY)
    async with aclosing(service.stream(request("h"))) as deltas:
        first = await anext(deltas)  # decode never says anything
        os.kill(service.workers[1].pid or 0, signal.SIGKILL)
        rest = [delta async for delta in deltas]
    assert first.text == answer_to("h", 1)
    assert_undisturbed([first, *rest], "h")
    assert (service.resumed, service.retried) == (1, 0)


async def test_many_answers_survive_one_death(forked: Stage) -> None:
    slow = {"s": Act(pause_s=0.002), "d": Act("die", after=8, pause_s=0.002)}
    scripts: dict[str, Scripts]
    scripts = {"decode-0": [Script(acts=slow), READY], "decode-1": Script(acts=slow)}
    service = await forked.service("prefill", "decode", "decode", scripts=scripts, policy=POLICY)
    wanted = [request(f"s{n}", 40) for n in range(30)] + [request("d", 40), request("d", 40)]
    answers = await asyncio.gather(*(deltas_of(service, one) for one in wanted))
    for n, deltas in enumerate(answers[:30]):
        assert_undisturbed(deltas, f"s{n}", 40)
    for deltas in answers[30:]:
        assert_undisturbed(deltas, "d", 40)
    assert service.resumed > 1


async def test_an_answer_survives_several_deaths(forked: Stage) -> None:
    lives = [DIES, Script(acts={"d": Act("die", after=3)}), DIES, READY]
    service = await forked.service("prefill", "decode", scripts={"decode-0": lives}, policy=POLICY)
    assert_undisturbed(await deltas_of(service, request("d")), "d")
    assert service.resumed == 3
    assert service.workers[1].restarts == 3


async def test_a_request_whose_prefill_died_is_tried_again(forked: Stage) -> None:
    scripts = {"prefill-0": [DIES_AT_ONCE, READY]}
    service = await forked.service("prefill", "decode", scripts=scripts, policy=POLICY)
    assert_undisturbed(await deltas_of(service, request("d")), "d")
    assert (service.resumed, service.retried) == (0, 1)
    await forked.idle(*service.workers)


async def test_decode_goes_on_without_prefill(forked: Stage) -> None:
    service = await forked.service(
        "prefill",
        "decode",
        scripts={"decode-0": Script(acts={"s": Act(pause_s=0.01)})},
        policy=POLICY,
    )
    async with aclosing(service.stream(request("s", 30))) as deltas:
        first = await anext(deltas)
        os.kill(service.workers[0].pid or 0, signal.SIGKILL)
        await forked.journal.line("prefill-0 is back")
        rest = [delta async for delta in deltas]
    assert_undisturbed([first, *rest], "s", 30)
    assert (service.resumed, service.retried) == (0, 0)


@pytest.mark.parametrize("resume", [True, False])
async def test_a_failed_transfer_is_tried_on_another_pair(forked: Stage, resume: bool) -> None:
    fails = Script(acts={"t": Act("fail", code="transfer_failed")})
    policy = replace(POLICY, resume=resume)
    service = await forked.service(
        "prefill", "decode", "decode", scripts={"decode-0": fails}, policy=policy
    )
    for _ in range(4):
        assert_undisturbed(await deltas_of(service, request("t")), "t")
    # Prefill's token may come before decode's failure: but not where nothing could follow it.
    assert service.resumed + service.retried >= 1
    assert resume or service.resumed == 0
    assert [worker.restarts for worker in service.workers] == [0, 0, 0]


async def test_tries_are_limited(forked: Stage) -> None:
    fails = Script(acts={"t": Act("fail", code="transfer_failed")})
    scripts = {"decode-0": fails, "decode-1": fails}
    policy = replace(POLICY, retry_limit=2)
    service = await forked.service("prefill", "decode", "decode", scripts=scripts, policy=policy)
    with pytest.raises(TransferFailed, match=r"the script says so; .* 3 pairs were tried"):
        await deltas_of(service, request("t"))
    assert service.open == service.inflight == 0


UNRESUMABLE: list[tuple[ServicePolicy, dict[str, Any], str]] = [
    (POLICY, {"json_schema": "{}"}, "json_schema is set"),
    (POLICY, {"frequency_penalty": 0.5}, "frequency_penalty is set"),
    (replace(POLICY, resume=False), {}, "PD_RESUME is off"),
]


@pytest.mark.parametrize(("policy", "params", "why"), UNRESUMABLE)
async def test_what_would_not_be_the_same_answer_is_an_error(
    forked: Stage, policy: ServicePolicy, params: dict[str, Any], why: str
) -> None:
    service = await forked.service(
        "prefill", "decode", scripts={"decode-0": [DIES, READY]}, policy=policy
    )
    wanted = request("d")
    wanted = msgspec.structs.replace(wanted, sampling_params=wanted.sampling_params | params)
    with pytest.raises(WorkerDied, match=f"not tried elsewhere: {why}"):
        await deltas_of(service, wanted)
    await forked.journal.line("decode-0 is back")
    assert_undisturbed(await deltas_of(service, request("x")), "x")


# --- workers


async def test_a_worker_comes_back_after_failed_starts(forked: Stage) -> None:
    lives = [DIES, Script(start="raise"), Script(start="exit"), READY]
    service = await forked.service("prefill", "decode", scripts={"decode-0": lives}, policy=POLICY)
    assert_undisturbed(await deltas_of(service, request("d")), "d")
    assert service.workers[1].state == "ready"
    assert service.status == "ready"


async def test_a_worker_that_does_not_come_back_is_given_up(forked: Stage) -> None:
    lives = [DIES_AT_ONCE, Script(start="raise", last_words=["no more memory"])]
    policy = replace(POLICY, restarts=replace(RESTARTS, limit=3))
    service = await forked.service("prefill", "decode", scripts={"decode-0": lives}, policy=policy)
    with pytest.raises(NotServing):
        await deltas_of(service, request("d"))
    decode = service.workers[1]
    assert (decode.state, service.status) == ("failed", "failed")
    assert decode.last_error is not None
    assert decode.last_error.startswith("given up after 3 restarts within 300 s: RuntimeError")
    with pytest.raises(NotServing, match="the service is failed"):
        await deltas_of(service, request("x"))


async def test_the_others_serve_on_when_one_is_given_up(forked: Stage) -> None:
    policy = replace(POLICY, restarts=replace(RESTARTS, limit=0))
    service = await forked.service(
        "prefill", "decode", "decode", scripts={"decode-1": DIES}, policy=policy
    )
    for _ in range(4):
        assert_undisturbed(await deltas_of(service, request("d")), "d")
    assert service.status == "degraded"


HANGS = replace(POLICY, restarts=replace(RESTARTS, hang_timeout_s=0.4))


async def test_a_hung_process_is_replaced_and_its_answers_go_on(forked: Stage) -> None:
    scripts = {"decode-0": [Script(acts={"h": Act("hang", after=5)}), READY]}
    service = await forked.service("prefill", "decode", scripts=scripts, policy=HANGS)
    running = create_task(deltas_of(service, request("h")))
    await forked.journal.line("decode-0 . hang")
    os.kill(service.workers[1].pid or 0, signal.SIGSTOP)
    assert_undisturbed(await running, "h")
    assert any("no sign of life for" in line for line in forked.journal.lines)


async def test_a_hung_scheduler_is_seen_by_its_snapshot(forked: Stage) -> None:
    lives = [Script(load=Load(snapshot_at=0.0)), READY]
    service = await forked.service("prefill", "decode", scripts={"decode-0": lives}, policy=HANGS)
    await forked.journal.line("decode-0: ready → suspect")
    await forked.journal.line("decode-0 is back")
    assert_undisturbed(await deltas_of(service, request("x")), "x")


async def test_one_that_was_only_slow_is_trusted_again(forked: Stage) -> None:
    policy = replace(POLICY, restarts=replace(RESTARTS, hang_timeout_s=6.0))
    service = await forked.service("prefill", "decode", policy=policy)
    pid = service.workers[1].pid or 0
    os.kill(pid, signal.SIGSTOP)
    await forked.journal.line("decode-0: ready → suspect")
    assert service.status == "starting"  # it is the only one
    os.kill(pid, signal.SIGCONT)
    await forked.journal.line("decode-0: suspect → ready")
    assert service.workers[1].restarts == 0
    assert_undisturbed(await deltas_of(service, request("x")), "x")


def _as_if_the_machine_were_busy(monkeypatch: pytest.MonkeyPatch, pid: int) -> None:
    """Let it look as if `pid` has waited for a processor since its start, and waits still."""
    monkeypatch.setattr(
        own_time, "waits_of", lambda pids: {(pid, "main"): time.monotonic_ns()} if pids else {}
    )


@pytest.mark.timeout(90)
@pytest.mark.both_loops
async def test_one_that_does_not_get_a_processor_is_not_replaced(
    forked: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await forked.service("prefill", "decode", policy=HANGS)
    pid = service.workers[1].pid or 0
    _as_if_the_machine_were_busy(monkeypatch, pid)
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(3 * HANGS.restarts.hang_timeout_s)
    assert service.workers[1].restarts == 0
    os.kill(pid, signal.SIGCONT)
    assert_undisturbed(await deltas_of(service, request("x")), "x")
    assert service.status == "ready"
    assert service.workers[1].restarts == 0


@pytest.mark.timeout(90)
@pytest.mark.both_loops
async def test_one_that_hangs_is_replaced_on_the_busiest_machine(
    forked: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await forked.service("prefill", "decode", policy=HANGS)
    pid = service.workers[1].pid or 0
    _as_if_the_machine_were_busy(monkeypatch, pid)
    began = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    await forked.journal.line("decode-0 failed: no sign of life for")
    assert time.monotonic() - began > 5 * HANGS.restarts.hang_timeout_s
    await forked.journal.line("decode-0 is back")


async def test_a_link_that_stays_broken_is_made_anew(forked: Stage) -> None:
    # the token of the start is carried, those of the canary are not
    fails = Script(acts={"\0": Act("fail", skip=1, code="transfer_failed")})
    scripts = {"decode-0": [fails, READY]}
    policy = replace(POLICY, canary_interval_s=0.1)
    service = await forked.service("prefill", "decode", "decode", scripts=scripts, policy=policy)
    await forked.journal.line(r"prefill-0\+decode-0 did not carry a token \(1 in a row\)")
    for _ in range(4):
        assert_undisturbed(await deltas_of(service, request("x")), "x")
    await forked.journal.line("decode-0 failed: the link of .* stays broken")
    await forked.journal.line("decode-0 is back")
    assert_undisturbed(await deltas_of(service, request("x")), "x")


async def test_a_link_that_a_new_decode_worker_does_not_mend(forked: Stage) -> None:
    # the prefill worker hands over the token of the start, and never again
    stuck = Script(acts={"\0": Act("fail", skip=1, code="transfer_failed")})
    scripts = {"prefill-0": [stuck, READY]}
    policy = replace(POLICY, canary_interval_s=0.1)
    service = await forked.service("prefill", "decode", scripts=scripts, policy=policy)
    await forked.journal.line("decode-0 failed: the link of .* stays broken")
    await forked.journal.line("decode-0 is back")
    waiting = create_task(deltas_of(service, request("x")))
    await forked.journal.line("prefill-0 failed: the link of .* stays broken")
    await forked.journal.line(r"the link of prefill-0\+decode-0 works again")
    assert_undisturbed(await waiting, "x")
    assert [worker.restarts for worker in service.workers] == [1, 1]
    assert service.retried == 0  # nobody was sent over a link that was not seen to work
    assert service.status == "ready"


@pytest.mark.timeout(90)
@pytest.mark.both_loops
async def test_a_silent_link_is_found_while_requests_are_open_on_it(
    forked: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canary, "_PROBE_TIMEOUT_S", 0.1)
    # From its second probe on prefill says nothing at all, to nobody.
    silent = Script(acts={"\0": Act("hang", skip=1), "x": Act("hang")})
    policy = replace(POLICY, canary_interval_s=0.5)
    service = await forked.service(
        "prefill", "decode", scripts={"prefill-0": [silent, READY]}, policy=policy
    )
    waiting = create_task(deltas_of(service, request("x")))
    await forked.journal.line(r"prefill-0\+decode-0 did not carry a token \(1 in a row\)")
    assert service.fleet.router.broken
    assert not waiting.done()
    await forked.journal.line("prefill-0 failed: the link of .* stays broken")
    assert_undisturbed(await waiting, "x")
    assert service.status == "ready"


# --- the way down, in the middle of all that


async def test_a_service_can_be_stopped_while_a_worker_comes_back(forked: Stage) -> None:
    scripts = {"decode-0": [DIES_AT_ONCE, Script(start="hang")]}
    service = await forked.service("prefill", "decode", scripts=scripts, policy=POLICY)
    waiting = create_task(deltas_of(service, request("d")))
    await forked.journal.line("decode-0 . starting for ever")
    assert await service.stop(drain_timeout_s=0.1) is False
    with pytest.raises(NotServing):
        await waiting
    assert [worker.pid for worker in service.workers] == [None, None]


async def test_the_deadline_holds_while_nobody_serves(forked: Stage) -> None:
    scripts = {"decode-0": [DIES_AT_ONCE, Script(start="hang")]}
    policy = replace(POLICY, request_timeout_s=0.5)
    service = await forked.service("prefill", "decode", scripts=scripts, policy=policy)
    with pytest.raises(NotServing, match="no pair of workers came back"):
        await deltas_of(service, request("d"))
    with pytest.raises(DeadlineExceeded, match="no pair of workers came back"):
        await deltas_of(service, request("x"))
    assert service.open == service.inflight == 0
