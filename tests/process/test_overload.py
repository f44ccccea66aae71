"""Three times the load that fits, half of the clients leaving: every place comes back."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest

from pd_eagle.errors import DeadlineExceeded, Overloaded
from pd_eagle.requests.policy import ServicePolicy
from tests.process.stage import Stage, request
from tests.scripted import Act, Script, answer_to

if TYPE_CHECKING:
    from pd_eagle.requests.service import Service

_PLACES = 4
_CLIENTS = 3 * _PLACES
_ROUNDS = 12
_POLICY = ServicePolicy(
    request_timeout_s=10.0, max_inflight=_PLACES, max_queue=_CLIENTS, queue_timeout_s=0.05
)
# An answer takes about as long as a turn is waited for: timeouts and turns come together.
_SLOW = Script(acts={"h": Act(pause_s=0.003)})


async def _client(service: Service, number: int, ends: Counter[str]) -> None:
    draw = random.Random(number)
    for turn in range(_ROUNDS):
        prompt = f"h{number}.{turn}"
        leaves = draw.random() < 0.5
        try:
            async with aclosing(service.stream(request(prompt))) as deltas:
                text = ""
                async for delta in deltas:
                    text += delta.text
                    if leaves and len(text) > draw.randint(0, 15):
                        break
            ends["left" if len(text) < 16 else "answered"] += 1
            assert answer_to(prompt).startswith(text)
        except (Overloaded, DeadlineExceeded) as error:
            ends[error.code] += 1


@pytest.mark.timeout(120)
@pytest.mark.both_loops
async def test_every_place_comes_back(forked: Stage) -> None:
    service = await forked.service("prefill", "decode", scripts={"decode-0": _SLOW}, policy=_POLICY)
    ends: Counter[str] = Counter()
    await asyncio.gather(*(_client(service, number, ends) for number in range(_CLIENTS)))
    assert ends.total() == _CLIENTS * _ROUNDS, ends
    assert min(ends["answered"], ends["left"], ends[Overloaded.code]) > 0, ends
    admission = service.admission
    assert (admission.inflight, admission.tokens, admission.queued, service.open) == (0, 0, 0, 0)
    together = await asyncio.gather(*(_whole(service, f"x{n}") for n in range(_PLACES)))
    assert together == [answer_to(f"x{n}") for n in range(_PLACES)]
    assert [worker.restarts for worker in service.workers] == [0, 0]


async def _whole(service: Service, prompt: str) -> str:
    async with aclosing(service.stream(request(prompt))) as deltas:
        return "".join([delta.text async for delta in deltas])
