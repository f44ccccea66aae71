"""Whether every pair's link works: real traffic counts, otherwise a token of ours now and then.

A pair that cannot carry one is taken out; if it stays so, its decode worker is restarted, and if
that was not enough, its prefill worker. It knows pairs and probes, not what a probe is.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING

from pd_eagle.errors import PdEagleError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pd_eagle.router import Pair, Router

logger = logging.getLogger(__name__)

_PROBE_TIMEOUT_S = 10.0
#: Probes in a row that a link may fail before a worker is restarted.
_PATIENCE = 2


class Canary:
    """Watches the links of all pairs that the router hands out."""

    def __init__(
        self,
        router: Router,
        probe: Callable[[Pair, float], Awaitable[None]],
        on_change: Callable[[], None],
        interval_s: float,
    ) -> None:
        self._router = router
        self._probe = probe
        self._on_change = on_change
        self._interval_s = interval_s
        self._carried_at: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._doubted: set[str] = set()
        self._made_anew: Counter[str] = Counter()  # how often, since it last carried a token
        self._doubt = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def carried(self, pair: Pair) -> None:
        """Note that `pair` has just carried a token end to end."""
        self._carried_at[pair.name] = asyncio.get_running_loop().time()
        self._doubted.discard(pair.name)
        self._failures.pop(pair.name, None)
        self._made_anew.pop(pair.name, None)
        if pair.name in self._router.broken:
            self._router.broken.discard(pair.name)
            logger.warning("the link of %s works again", pair.name)
            self._on_change()

    def doubt(self, pair: Pair) -> None:
        """Note that a request failed on `pair` in transfer: it is probed at once."""
        self._doubted.add(pair.name)
        self._doubt.set()

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._watch())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            try:
                wait_s = min(self._interval_s / 4, 1.0 if self._router.broken else 5.0)
                # Not wait_for: that of Python 3.11 loses a cancellation that comes with the doubt.
                async with asyncio.timeout(wait_s):
                    await self._doubt.wait()
            except TimeoutError:
                pass
            self._doubt.clear()
            for pair in self._router.all_pairs():
                if self._due(pair):
                    await self._check(pair)
            self._forget_the_gone()

    def _due(self, pair: Pair) -> bool:
        if pair.name in self._doubted or pair.name in self._router.broken:
            return True
        busy = pair.decode.inflight or (pair.prefill is not None and pair.prefill.inflight)
        silent_s = asyncio.get_running_loop().time() - self._carried_at.get(pair.name, 0.0)
        return not busy and silent_s > self._interval_s

    async def _check(self, pair: Pair) -> None:
        try:
            await self._probe(pair, _PROBE_TIMEOUT_S)
        except PdEagleError as error:
            self._failed(pair, error)

    def _failed(self, pair: Pair, error: PdEagleError) -> None:
        if pair.decode.state != "ready" or (pair.prefill and pair.prefill.state != "ready"):
            return  # not the link: the supervisor sees to the worker
        failures = self._failures[pair.name] = self._failures.get(pair.name, 0) + 1
        logger.warning("%s did not carry a token (%d in a row): %s", pair.name, failures, error)
        self._router.broken.add(pair.name)
        self._on_change()
        if failures >= _PATIENCE:
            self._failures.pop(pair.name, None)
            self._make_anew(pair, error)

    def _make_anew(self, pair: Pair, error: PdEagleError) -> None:
        """Restart one end of a broken link: decode's, then prefill's, in turn."""
        worker = pair.decode
        if pair.prefill is not None and self._made_anew[pair.name] % 2:
            worker = pair.prefill
        self._made_anew[pair.name] += 1
        worker.declare_dead(f"the link of {pair.name} stays broken: {error}")

    def _forget_the_gone(self) -> None:
        present = {pair.name for pair in self._router.all_pairs()}
        # What comes back has a new link; if it came back because of the link, that must be seen.
        if gone := self._router.broken - present - self._made_anew.keys():
            self._router.broken -= gone
            self._on_change()
