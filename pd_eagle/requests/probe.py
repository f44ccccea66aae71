"""A probe: a request of our own that carries a token over one pair, end to end.

It does not know why the pair is probed, nor what follows from a failure.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

from pd_eagle.errors import DeadlineExceeded
from pd_eagle.messages import Request, new_rid
from pd_eagle.requests import handoff
from pd_eagle.workers import own_time
from pd_eagle.workers.own_time import LEAST_SHARE

if TYPE_CHECKING:
    from pd_eagle.requests.router import Pair

#: The first token is prefill's: the second takes one step of the decode engine.
_PARAMS = {"max_new_tokens": 2, "ignore_eos": True, "temperature": 0}


async def carry_token(pair: Pair, timeout_s: float) -> None:
    """Carry a prompt over `pair` and take one step of its decode engine.

    `timeout_s` is of the workers' own time. Raises what the request fails with.
    """
    pids = [pid for worker in pair.workers for pid in worker.pids]
    try:
        await own_time.limited(_run(pair, timeout_s / LEAST_SHARE), pids, timeout_s)
    except TimeoutError:
        raise DeadlineExceeded(f"no token within {timeout_s:.0f} s") from None


async def _run(pair: Pair, timeout_s: float) -> None:
    request = Request(new_rid(), [0], dict(_PARAMS))
    deadline = asyncio.get_running_loop().time() + timeout_s
    async with aclosing(handoff.run(pair, request, deadline)) as deltas:
        async for _ in deltas:
            pass
