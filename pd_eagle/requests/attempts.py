"""All attempts of one request, from its admission to its one terminal event.

It keeps what outlives an attempt: how far the answer is, which pairs have failed, what the request
is suspected of. It chooses no pair and starts nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pd_eagle.messages import new_rid
from pd_eagle.requests.resume import Progress, first_may_come_early, why_not_resume
from pd_eagle.requests.suspicion import Suspicion

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from pd_eagle.messages import Delta, Request
    from pd_eagle.requests.metrics import RequestWatch
    from pd_eagle.requests.policy import ServicePolicy
    from pd_eagle.requests.quarantine import Quarantine
    from pd_eagle.requests.router import Pair


class Attempts:
    """The attempts of one request; `deadline` is a time of the running loop. `close` it."""

    def __init__(
        self,
        request: Request,
        deadline: float,
        policy: ServicePolicy,
        watch: RequestWatch,
        quarantine: Quarantine,
        detokenize: Callable[[list[int]], str] | None,
        cut: asyncio.Future[None],
    ) -> None:
        self.request = request
        #: Done when the request is to end early.
        self.cut = cut
        self.deadline = deadline
        self.watch = watch
        self.suspicion = Suspicion()
        self.first_early = policy.resume and first_may_come_early(request)
        #: The pair that failed last: another is preferred.
        self.last_failed: str | None = None
        self._policy = policy
        self._quarantine = quarantine
        self._progress = Progress(request, detokenize)
        #: Pairs that failed, as PD_RETRY_LIMIT counts them.
        self._counted: list[str] = []
        self._crashes = 0

    def close(self) -> None:
        """Note that the request is over, whatever its end was."""
        self._quarantine.close(self.suspicion)

    # --- one attempt

    def begin(self, pair: Pair) -> Request:
        """Return what `pair` is to be asked for; `end` must follow, with its rid."""
        rid = self.request.rid if self.last_failed is None else new_rid()
        asked = self.watch.attempt(pair, self._progress.next_attempt(rid))
        self._quarantine.begin(rid, self.suspicion)
        return asked

    def end(self, rid: str) -> None:
        self._quarantine.end_attempt(rid, self.suspicion)

    def add(self, delta: Delta) -> Delta | None:
        """Return `delta` as a part of the whole answer, None if the client has all of it."""
        if (addition := self._progress.add(delta)) is None:
            return None
        tokens = len(addition.output_ids)
        self.watch.delta(tokens)
        self.suspicion.tokens += tokens
        if self.suspicion.on_trial or self.suspicion.entering:
            self._quarantine.progressed(self.suspicion)
        if addition.finished:
            self.watch.finished(addition.meta)
        return addition

    # --- the next attempt

    @property
    def answering(self) -> bool:
        """Whether the client has a part of the answer: another attempt resumes it."""
        return self._progress.begun

    def note_failure(self, pair: Pair) -> None:
        """Note that `pair` failed; it does not count if it crashed, maybe by another request."""
        self.last_failed = pair.name
        if self.suspicion.crashes > self._crashes:
            self._crashes = self.suspicion.crashes
        else:
            self._counted.append(pair.name)

    def why_no_more(self, *, stopping: bool) -> str | None:
        """Return why another attempt is not allowed or could not give the same answer, or None."""
        limit = self._policy.retry_limit
        if not limit:
            return "PD_RETRY_LIMIT is 0"
        if len(self._counted) > limit:
            names = ", ".join(self._counted)
            return f"{len(self._counted)} pairs were tried: {names} (PD_RETRY_LIMIT)"
        if stopping:
            return "the service is stopping"
        if not self.answering:
            return None
        return why_not_resume(self.request) if self._policy.resume else "PD_RESUME is off"
