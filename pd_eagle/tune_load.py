"""Loads one running plan at a rate, and says which answers were good at each level.

Requests are sent at their moments, whoever has not answered yet. It decides nothing: `tune` does.
"""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pd_eagle.errors import NotServing
from pd_eagle.messages import Request, new_rid
from pd_eagle.tune import OutOfTime, Times, Trial

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pd_eagle.tune import Level
    from pd_eagle.tune_engine import RunningPlan
    from pd_eagle.tune_traffic import Asked, Traffic

#: A trial has at least so many requests, or, where that would take most of the time that is left,
#: half of it and a few.
FEWEST, FEW = 12, 4
#: Drain: what is not answered by then was not good.
_PATIENCE = 2.0
#: A burst that takes longer says enough of the capacity, and so does one that is hardly faster.
#: Each has so many times as many requests, and at most so small a part of the time that is left.
_BURST_S, _FASTER, _MORE = 2.0, 1.3, 4
#: Longest wait until aborted requests have left the engines.
_IDLE_S = 5.0


@dataclass(slots=True)
class _Tally:
    """Counts answers of one trial as they come."""

    levels: Sequence[Level]
    asked: int
    times: list[Times] = field(default_factory=list)
    errors: set[str] = field(default_factory=set)
    ended: int = 0
    good: list[int] = field(init=False)
    decided: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.good = [0] * len(self.levels)

    def count(self, task: asyncio.Task[Times]) -> None:
        if task.cancelled():
            return
        self.ended += 1
        if error := task.exception():
            self.errors.add(f"{type(error).__name__}: {error}"[:200])
        else:
            self.times.append(task.result())
            for number, level in enumerate(self.levels):
                self.good[number] += level.keeps(self.times[-1])
        if self.ended == self.asked or self.lost:
            self.decided.set()

    @property
    def lost(self) -> bool:
        """Whether no level can be kept any more."""
        return all(
            not level.allows(self.ended - good, self.asked)
            for good, level in zip(self.good, self.levels, strict=True)
        )


class Load:
    """Sends requests to one plan; nothing is begun that would end after `ends_at`.

    `trial_s` is how long a trial sends, in seconds.
    """

    def __init__(
        self,
        plan: RunningPlan,
        traffic: Traffic,
        levels: Sequence[Level],
        *,
        trial_s: float,
        ends_at: float,
    ) -> None:
        self._plan = plan
        self._traffic = traffic
        self._levels = levels
        self._trial_s = trial_s
        self._ends_at = ends_at
        longest = max(one.answer for one in traffic.requests)
        slowest_s = max(one.first_s + longest * one.mean_gap_s for one in levels)
        self._drain_s = _PATIENCE * slowest_s

    def warm(self) -> float:
        """Send ever more requests at once while that is faster; return answers/s of the fastest.

        That is the order of magnitude of what the plan can take, and kernels are compiled then.
        Most of the time is left for trials. Raises `OutOfTime`, `PdEagleError`.
        """
        took_s = self._at_once(1, self._left_s())  # may compile kernels
        count, best = 1, 1 / took_s
        while took_s < _BURST_S and self._left_s() > _MORE * took_s:
            try:
                took_s = self._at_once(count, self._left_s() / _MORE)
            except OutOfTime:
                break
            if count > 1 and count / took_s < best * _FASTER:
                break
            best, count = count / took_s, count * _MORE
        return best

    def _at_once(self, count: int, limit_s: float) -> float:
        """Return how many seconds `count` requests take that are sent at the same time."""
        began = time.monotonic()

        async def send() -> None:
            asked = [one for _, one in self._traffic.arrivals(count, 1.0)]
            prompts = [self._traffic.prompt(one) for one in asked]
            try:
                async with asyncio.timeout(limit_s):
                    await asyncio.gather(*map(self._answer, prompts, asked))
            except TimeoutError:
                raise OutOfTime from None

        self._plan.call(send())
        return max(time.monotonic() - began, 1e-3)

    def _left_s(self) -> float:
        return max(0.0, self._ends_at - time.monotonic())

    def at(self, rate: float) -> Trial:
        """Send at `rate` a second. Raises `OutOfTime` where the budget ends before the trial."""
        left_s = self._left_s()
        seconds = max(self._trial_s, FEW / rate, min(FEWEST / rate, left_s / 2))
        if seconds > left_s:
            raise OutOfTime
        trial: Trial = self._plan.call(self._offered(rate, seconds))
        self._wait_until_idle()
        return trial

    async def _offered(self, rate: float, seconds: float) -> Trial:
        count = max(1, round(rate * seconds))
        sent = [(at, self._traffic.prompt(one), one) for at, one in self._arrivals(count, seconds)]
        tally = _Tally(self._levels, count)
        began = time.monotonic()
        tasks = []
        for moment, prompt, asked in sent:
            await asyncio.sleep(max(0.0, began + moment - time.monotonic()))
            if tally.lost:
                break
            task = asyncio.create_task(self._answer(prompt, asked))
            task.add_done_callback(tally.count)
            tasks.append(task)
        in_time = await self._drained(tally)
        took_s = time.monotonic() - began
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not in_time:
            raise OutOfTime  # they were cut off by the budget, not by the level
        return _trial(rate, tally, took_s)

    def _arrivals(self, count: int, seconds: float) -> list[tuple[float, Asked]]:
        return list(self._traffic.arrivals(count, seconds))

    async def _drained(self, tally: _Tally) -> bool:
        """Wait for what is open; False if the budget ended before that."""
        left_s = self._left_s()
        try:
            await asyncio.wait_for(tally.decided.wait(), min(self._drain_s, left_s))
        except TimeoutError:
            return left_s > self._drain_s
        return True

    def _wait_until_idle(self) -> None:
        until = time.monotonic() + min(_IDLE_S, self._left_s())
        while self._plan.service.inflight and time.monotonic() < until:
            time.sleep(0.02)

    async def _answer(self, prompt: list[int], asked: Asked) -> Times:
        params = {"max_new_tokens": asked.answer, "ignore_eos": True, "temperature": 0}
        request = Request(new_rid(), prompt, params)
        began = last = time.monotonic()
        first_s, longest_s, tokens = 0.0, 0.0, 0
        async with aclosing(self._plan.service.stream(request, patient=True)) as deltas:
            async for delta in deltas:
                if not delta.output_ids:
                    continue
                now = time.monotonic()
                if tokens:
                    longest_s = max(longest_s, now - last)
                else:
                    first_s = now - began
                last, tokens = now, tokens + len(delta.output_ids)
        if not tokens:
            raise NotServing("an answer without a token")
        return Times(first_s, (last - began - first_s) / max(tokens - 1, 1), longest_s)


def _trial(rate: float, tally: _Tally, took_s: float) -> Trial:
    return Trial(
        rate_per_s=rate,
        asked=tally.asked,
        good=tuple(tally.good),
        answers_per_s=len(tally.times) / took_s,
        seconds=round(took_s, 3),
        first_s=quantiles([one.first_s for one in tally.times]),
        mean_gap_s=quantiles([one.mean_gap_s for one in tally.times]),
        longest_gap_s=quantiles([one.longest_gap_s for one in tally.times]),
        cut_short=tally.ended < tally.asked,
        errors=tuple(sorted(tally.errors))[:3],
    )


def quantiles(values: list[float]) -> dict[str, float]:
    """Return the median and the 95th percentile of `values`; nothing of none."""
    ranked = sorted(values)
    return {
        f"p{percent}": round(ranked[math.ceil(percent / 100 * len(ranked)) - 1], 4)
        for percent in (50, 95)
        if ranked
    }
