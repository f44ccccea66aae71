"""A request that crashes the engine it is in ends alone; everybody else gets the whole answer."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio import create_task
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pd_eagle.errors import EngineCrashed, InvalidRequest, NotServing, WorkerDied
from pd_eagle.messages import Request, new_rid
from pd_eagle.requests.policy import ServicePolicy
from pd_eagle.workers.restarts import RestartPolicy
from tests.process.stage import READY, Stage, request
from tests.scripted import Act, Script, answer_to, ids_of

if TYPE_CHECKING:
    from pd_eagle.messages import Role
    from pd_eagle.requests.service import Service

RESTARTS = RestartPolicy(limit=2, first_delay_s=0.01, longest_delay_s=0.05, given_up_delay_s=0.2)
POLICY = ServicePolicy(request_timeout_s=15.0, restarts=RESTARTS)
# "p" crashes whatever engine it is in; honest answers take a while.
POISONED = Script(acts={"p": Act("crash"), "h": Act(pause_s=0.02)})
POISONED_LATE = Script(acts={"p": Act("crash", after=3), "h": Act(pause_s=0.02)})


async def text_of(service: Service, wanted: Request) -> str:
    async with aclosing(service.stream(wanted)) as deltas:
        return "".join([delta.text async for delta in deltas])


def deaths(stage: Stage) -> int:
    return sum("failed: its " in line for line in stage.journal.lines)


@pytest.mark.both_loops
@pytest.mark.parametrize("script", [POISONED, POISONED_LATE], ids=["at once", "after some tokens"])
@pytest.mark.parametrize(
    ("roles", "poisoned"),
    [
        (("unified",), "unified"),
        (("unified", "unified"), "unified"),
        (("prefill", "decode"), "prefill"),
        (("prefill", "decode"), "decode"),
        (("prefill", "decode", "decode"), "decode"),
        (("prefill", "prefill", "decode", "decode"), "prefill"),
    ],
)
async def test_the_honest_get_their_answers_and_the_poison_its_error(
    forked: Stage, roles: tuple[Role, ...], poisoned: Role, script: Script
) -> None:
    names = {f"{poisoned}-{number}": script for number in range(roles.count(poisoned))}
    service = await forked.service(*roles, scripts=names, policy=POLICY)
    honest = [create_task(text_of(service, request(f"h{n}", 40))) for n in range(8)]
    await asyncio.sleep(0.1)
    with pytest.raises(EngineCrashed, match="IndexError: the script says"):
        await text_of(service, request("p"))
    assert await asyncio.gather(*honest) == [answer_to(f"h{n}", 40) for n in range(8)]
    assert deaths(forked) <= 4
    assert not any("given up" in line for line in forked.journal.lines)
    assert service.open == service.inflight == 0
    assert await text_of(service, request("x")) == answer_to("x")


async def test_many_poisons_one_after_the_other_use_up_no_restarts(forked: Stage) -> None:
    service = await forked.service(
        "prefill", "decode", scripts={"prefill-0": POISONED}, policy=POLICY
    )
    for number in range(4):  # over a limit of two restarts
        with pytest.raises(EngineCrashed):
            await text_of(service, request(f"p{number}"))
    # The first crashes in company and alone; those that follow with the same words once.
    assert deaths(forked) == 2 + 3
    assert await text_of(service, request("x")) == answer_to("x")
    assert not any("given up" in line for line in forked.journal.lines)


async def test_the_same_poison_once_more_kills_nothing(forked: Stage) -> None:
    service = await forked.service(
        "prefill", "decode", scripts={"prefill-0": POISONED}, policy=POLICY
    )
    with pytest.raises(EngineCrashed):
        await text_of(service, request("p"))
    dead = deaths(forked)
    for _ in range(5):  # as OpenAI's client does after a 500
        with pytest.raises(EngineCrashed, match="a short time ago: prefill-0: IndexError"):
            await text_of(service, request("p"))
    assert deaths(forked) == dead
    with pytest.raises(EngineCrashed):
        await text_of(service, request("p", 4))  # another request
    assert deaths(forked) > dead


async def test_poisons_at_once_end_one_by_one(forked: Stage) -> None:
    service = await forked.service(
        "prefill", "decode", scripts={"decode-0": POISONED}, policy=POLICY
    )
    honest = [create_task(text_of(service, request(f"h{n}", 40))) for n in range(4)]
    poisons = [create_task(text_of(service, request("p"))) for _ in range(5)]
    ended = await asyncio.gather(*poisons, return_exceptions=True)
    assert [type(end) for end in ended] == [EngineCrashed] * 5
    assert await asyncio.gather(*honest) == [answer_to(f"h{n}", 40) for n in range(4)]
    assert deaths(forked) <= 5 + 3


async def test_who_wants_no_second_try_gets_none_after_a_crash_either(forked: Stage) -> None:
    policy = replace(POLICY, retry_limit=0)
    service = await forked.service(
        "prefill", "decode", scripts={"decode-0": POISONED}, policy=policy
    )
    with pytest.raises(WorkerDied, match="not tried elsewhere: PD_RETRY_LIMIT is 0"):
        await text_of(service, request("p"))
    assert deaths(forked) == 1
    assert await text_of(service, request("x")) == answer_to("x")


async def test_a_kill_from_outside_makes_no_suspects(forked: Stage) -> None:
    dies = Script(acts={"d": Act("die", after=2)})
    service = await forked.service(
        "prefill", "decode", scripts={"decode-0": [dies, dies, READY]}, policy=POLICY
    )
    assert await text_of(service, request("d")) == answer_to("d")
    assert not any("one at a time" in line for line in forked.journal.lines)


async def test_a_crash_that_nobody_caused_counts(forked: Stage) -> None:
    once = Script(acts={"p": Act("crash")})
    service = await forked.service(
        "prefill", "decode", scripts={"decode-0": [once, READY]}, policy=POLICY
    )
    assert await text_of(service, request("p")) == answer_to("p")
    assert service.fleet.supervisor._histories["decode-0"].recent == 1


async def test_a_client_that_leaves_gives_its_trial_back(forked: Stage) -> None:
    hangs_later = Script(acts={"p": Act("hang"), "h": Act(pause_s=0.02)})
    scripts = {"decode-0": [POISONED, POISONED, hangs_later]}
    service = await forked.service("prefill", "decode", scripts=scripts, policy=POLICY)
    honest = create_task(text_of(service, request("h", 40)))
    poison = create_task(text_of(service, request("p")))
    await forked.journal.lines_with("requests go on one at a time", 1)
    await forked.journal.line("decode-0 . hang")
    poison.cancel()
    assert await honest == answer_to("h", 40)
    assert await text_of(service, request("x")) == answer_to("x")


@pytest.mark.both_loops
async def test_a_message_that_cannot_be_encoded_fails_its_own_request(forked: Stage) -> None:
    worker = await forked.worker()  # a service's gate would refuse these before
    for value in (10**26, "\ud800", object(), "x" * 2**27):
        bad = Request(new_rid(), ids_of("x"), {"max_new_tokens": 4, "custom": value})
        first, refused, last = (
            forked.submit(worker, one) for one in (request("a", 1), bad, request("b", 1))
        )
        failure = await refused.failure()
        assert failure.code == InvalidRequest.code
        assert "cannot be sent to an engine" in failure.message
        # Those of the same turn of the loop are sent all the same.
        assert (await first.delta()).text == answer_to("a", 1)
        assert (await last.delta()).text == answer_to("b", 1)
    assert worker.inflight == 0
    assert worker.state == "ready"


@pytest.mark.both_loops
async def test_a_worker_that_was_given_up_is_tried_again(forked: Stage) -> None:
    dies = Script(acts={"d": Act("die")})
    policy = replace(POLICY, restarts=replace(RESTARTS, limit=1))
    lives = [dies, Script(start="raise"), Script(start="raise"), READY]
    service = await forked.service("prefill", "decode", scripts={"decode-0": lives}, policy=policy)
    with pytest.raises(NotServing):
        await text_of(service, request("d"))
    await forked.journal.lines_with("given up after . restarts", 2)
    await forked.journal.line("decode-0 is back")
    assert await text_of(service, request("x")) == answer_to("x")
    assert service.status == "ready"
    assert service.fleet.unserved_s == 0.0


@pytest.mark.both_loops
async def test_a_start_that_never_ends_is_ended(forked: Stage) -> None:
    dies = Script(acts={"d": Act("die")})
    policy = replace(POLICY, restarts=replace(RESTARTS, start_timeout_s=1.0))
    lives = [dies, Script(start="hang"), READY]
    service = await forked.service("prefill", "decode", scripts={"decode-0": lives}, policy=policy)
    assert await text_of(service, request("d")) == answer_to("d")
    await forked.journal.line(r"decode-0 could not start: not ready within 1 s \(START_TIMEOUT_S\)")


async def test_long_answers_go_on_through_many_poisons(forked: Stage) -> None:
    service = await forked.service(
        "prefill", "decode", scripts={"decode-0": POISONED}, policy=POLICY
    )
    honest = [create_task(text_of(service, request(f"h{n}", 200))) for n in range(8)]
    await asyncio.sleep(0.2)
    for number in range(8):
        with pytest.raises(EngineCrashed):
            await text_of(service, request(f"p{number}"))
    assert await asyncio.gather(*honest) == [answer_to(f"h{n}", 200) for n in range(8)]
    assert deaths(forked) <= 8 * 3
    # Whose crashes are explained is not made to wait: the poison was tried before all others.
    assert service.resumed <= 8 * 3 * 8 + 8


async def test_poison_that_crashes_later_each_time_is_found(forked: Stage) -> None:
    late = Script(acts={"p": Act("crash", after=9), "h": Act(pause_s=0.02)})
    service = await forked.service("prefill", "decode", scripts={"decode-0": late}, policy=POLICY)
    honest = [create_task(text_of(service, request(f"h{n}", 100))) for n in range(4)]
    await asyncio.sleep(0.1)
    with pytest.raises(EngineCrashed):
        await text_of(service, request("p", 400))
    assert await asyncio.gather(*honest) == [answer_to(f"h{n}", 100) for n in range(4)]
    assert deaths(forked) <= 5


async def test_a_poison_whose_client_leaves_makes_no_culprit_of_another(forked: Stage) -> None:
    slow = Script(acts={"p": Act("crash", pause_s=0.05, after=4), "h": Act(pause_s=0.02)})
    service = await forked.service("unified", scripts={"unified-0": slow}, policy=POLICY)
    honest = create_task(text_of(service, request("h", 150)))
    for number in range(3):
        poison = create_task(text_of(service, request(f"p{number}")))
        await forked.journal.lines_with("failed: its process ended", number + 1)
        poison.cancel()
        await asyncio.wait({poison})
    assert await honest == answer_to("h", 150)


async def test_an_engine_that_crashes_at_anything_makes_no_culprits(forked: Stage) -> None:
    broken = Script(acts={letter: Act("crash") for letter in "\0hp"})
    policy = replace(POLICY, canary_interval_s=60.0)
    scripts = {"decode-0": [POISONED, POISONED, broken, broken, READY]}
    service = await forked.service("prefill", "decode", scripts=scripts, policy=policy)
    honest = [create_task(text_of(service, request(f"h{n}", 40))) for n in range(4)]
    await asyncio.sleep(0.1)
    poison = create_task(text_of(service, request("p")))
    assert await asyncio.gather(*honest) == [answer_to(f"h{n}", 40) for n in range(4)]
    assert await poison == answer_to("p")  # in its last life the worker crashes at nothing
    assert any("is not fit for a trial" in line for line in forked.journal.lines)


async def test_a_client_that_does_not_read_holds_nobody_up(forked: Stage) -> None:
    # "q" is there at two crashes, and its client reads nothing after them.
    twice = Script(acts={"p": Act("crash"), "q": Act(pause_s=0.02), "h": Act(pause_s=0.02)})
    scripts = {"decode-0": [twice, twice, READY]}
    service = await forked.service("prefill", "decode", scripts=scripts, policy=POLICY)
    async with aclosing(service.stream(request("q", 100))) as unread:
        text = (await anext(unread)).text
        first = create_task(text_of(service, request("p1")))
        await forked.journal.lines_with("failed: its process ended", 1)
        text += (await anext(unread)).text
        await forked.journal.lines_with("failed: its process ended", 2)
        await asyncio.wait({first})
        assert await asyncio.wait_for(text_of(service, request("h")), 10) == answer_to("h")
        text += "".join([delta.text async for delta in unread])
    assert text == answer_to("q", 100)


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS])
@pytest.mark.parametrize("whose", ["host", "scheduler"])
async def test_a_fatal_signal_is_the_engines_own(
    forked: Stage, whose: str, number: signal.Signals
) -> None:
    slow = Script(acts={"h": Act(pause_s=0.05)}, schedulers=1)
    service = await forked.service("unified", scripts={"unified-0": slow}, policy=POLICY)
    honest = create_task(text_of(service, request("h", 30)))
    await forked.journal.line("unified-0 . got ")
    worker = service.workers[0]
    assert worker.info is not None
    victim = worker.pid if whose == "host" else worker.info.scheduler_pids[0]
    os.kill(victim or 0, number)
    assert await honest == answer_to("h", 30)
    assert any("its last words: " in line for line in forked.journal.lines)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("whose", ["host", "scheduler"])
async def test_a_kill_is_not_the_engines_own(
    forked: Stage, whose: str, number: signal.Signals
) -> None:
    slow = Script(acts={"h": Act(pause_s=0.05)}, schedulers=1)
    service = await forked.service("unified", scripts={"unified-0": slow}, policy=POLICY)
    honest = create_task(text_of(service, request("h", 30)))
    await forked.journal.line("unified-0 . got ")
    worker = service.workers[0]
    assert worker.info is not None
    victim = worker.pid if whose == "host" else worker.info.scheduler_pids[0]
    os.kill(victim or 0, number)
    assert await honest == answer_to("h", 30)
    assert not any("its last words: " in line for line in forked.journal.lines)


async def test_a_request_that_hangs_engines_is_found_too(
    forked: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else a busy machine, which gives the scheduler no processor, looks the same.
    monkeypatch.setattr("pd_eagle.workers.supervisor._OWN_DOING_SHARE", 0.01)
    spins = Script(acts={"p": Act("spin", after=2), "h": Act(pause_s=0.02)}, schedulers=1)
    policy = replace(POLICY, restarts=replace(RESTARTS, hang_timeout_s=1.0))
    policy = replace(policy, request_timeout_s=60.0)
    service = await forked.service("prefill", "decode", scripts={"decode-0": spins}, policy=policy)
    honest = [create_task(text_of(service, request(f"h{n}", 60))) for n in range(4)]
    await asyncio.sleep(0.1)
    with pytest.raises(EngineCrashed, match="hung: its scheduler was busy for"):
        await text_of(service, request("p"))
    assert await asyncio.gather(*honest) == [answer_to(f"h{n}", 60) for n in range(4)]
    assert deaths_by_hanging(forked) <= 3


async def test_one_that_is_stopped_from_outside_makes_no_suspects(forked: Stage) -> None:
    slow = Script(acts={"h": Act(pause_s=0.02)}, schedulers=1)
    policy = replace(POLICY, restarts=replace(RESTARTS, hang_timeout_s=1.0))
    service = await forked.service("prefill", "decode", scripts={"decode-0": slow}, policy=policy)
    honest = create_task(text_of(service, request("h", 40)))
    await forked.journal.lines_with("decode-0 . got ", 2)
    os.kill(service.workers[1].pid or 0, signal.SIGSTOP)
    assert await honest == answer_to("h", 40)
    assert deaths_by_hanging(forked) == 1
    assert not any("its last words" in line for line in forked.journal.lines)


def deaths_by_hanging(stage: Stage) -> int:
    return sum("failed: no sign of life" in line for line in stage.journal.lines)


async def test_what_takes_long_once_is_not_begun_again_for_ever(forked: Stage) -> None:
    # A kernel that is compiled for 1.5 s in the first step that needs it.
    compiles = Script(acts={"c": Act("spin")}, schedulers=1)
    policy = replace(POLICY, restarts=replace(RESTARTS, hang_timeout_s=0.6))
    service = await forked.service(
        "prefill", "decode", scripts={"decode-0": compiles}, policy=policy
    )
    supervisor, decode = service.fleet.supervisor, service.workers[1]
    known = [supervisor._hang_timeout_s(decode)]
    for number in range(2):
        running = create_task(text_of(service, request(f"c{number}", 8)))
        await forked.journal.lines_with("failed: no sign of life", number + 1)
        await forked.journal.lines_with("decode-0 is back", number + 1)
        known.append(supervisor._hang_timeout_s(decode))
        running.cancel()
        await asyncio.wait({running})
        await text_of(service, request("x"))
        known.append(supervisor._hang_timeout_s(decode))
    assert known == [0.6, 2.4, 1.2, 2.4, 2.4]
