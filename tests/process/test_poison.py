"""A request that crashes the engine it is in ends alone; everybody else gets the whole answer."""

from __future__ import annotations

import asyncio
from asyncio import create_task
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pd_eagle.errors import EngineCrashed, InvalidRequest, NotServing
from pd_eagle.messages import Request
from pd_eagle.restarts import RestartPolicy
from pd_eagle.service import ServicePolicy, new_rid
from tests.process.stage import READY, Stage, request
from tests.scripted import Act, Script, answer_to, ids_of

if TYPE_CHECKING:
    from pd_eagle.messages import Role
    from pd_eagle.service import Service

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
    for _ in range(4):  # two deaths each, over a limit of two restarts
        with pytest.raises(EngineCrashed):
            await text_of(service, request("p"))
    assert await text_of(service, request("x")) == answer_to("x")
    assert not any("given up" in line for line in forked.journal.lines)


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
    assert service._supervisor._histories["decode-0"].recent == 1


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


async def test_a_message_that_cannot_be_encoded_fails_its_own_request(forked: Stage) -> None:
    service = await forked.service("prefill", "decode", policy=POLICY)
    others = [create_task(text_of(service, request(f"h{n}"))) for n in range(4)]
    for value in (10**26, "\ud800", object(), "x" * 2**27):
        bad = Request(new_rid(), ids_of("x"), {"max_new_tokens": 4, "custom": value})
        with pytest.raises(InvalidRequest, match="cannot be sent to an engine"):
            await text_of(service, bad)
    assert await asyncio.gather(*others) == [answer_to(f"h{n}") for n in range(4)]
    assert deaths(forked) == 0
    assert service.status == "ready"


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
    assert service.unserved_s == 0.0


async def test_a_start_that_never_ends_is_ended(forked: Stage) -> None:
    dies = Script(acts={"d": Act("die")})
    policy = replace(POLICY, restarts=replace(RESTARTS, start_timeout_s=1.0))
    lives = [dies, Script(start="hang"), READY]
    service = await forked.service("prefill", "decode", scripts={"decode-0": lives}, policy=policy)
    assert await text_of(service, request("d")) == answer_to("d")
    await forked.journal.line(r"decode-0 could not start: not ready within 1 s \(START_TIMEOUT_S\)")
