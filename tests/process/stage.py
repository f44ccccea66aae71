"""Where scripted workers play: starts them in real processes, hears what they say."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import re
from contextlib import aclosing
from typing import TYPE_CHECKING

from pd_eagle.messages import Delta, Failed, Request, Submit, new_rid
from pd_eagle.plan.placement import Plan, WorkerPlan
from pd_eagle.requests import handoff
from pd_eagle.requests.policy import ServicePolicy
from pd_eagle.requests.service import Service
from pd_eagle.workers.launch import Launch
from pd_eagle.workers.restarts import RestartPolicy
from pd_eagle.workers.worker import Worker
from tests import scripted
from tests.scripted import Script

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
    from pathlib import Path

    from pd_eagle.messages import Event, Role
    from pd_eagle.requests.metrics import RequestWatch
    from pd_eagle.requests.router import Pair
    from pd_eagle.workers.launch import Launcher

    Watch = Callable[[Request], RequestWatch]

READY = Script()
Scripts = Script | list[Script]
#: Nothing is restarted, tried again or resumed: every failure is seen as it is.
ONE_TRY = ServicePolicy(
    request_timeout_s=60.0, retry_limit=0, resume=False, restarts=RestartPolicy(limit=0)
)


def plan_of(*roles: Role) -> Plan:
    """Return a plan with a worker for each of `roles`, named as the real ones are."""
    workers = [
        WorkerPlan(f"{role}-{roles[:index].count(role)}", role, (), 1)
        for index, role in enumerate(roles)
    ]
    in_pd = roles[0] != "unified"
    return Plan("pd" if in_pd else "unified", "a test", "cpu", tuple(workers))


def request(prompt: str, new_tokens: int = scripted.DEFAULT_NEW_TOKENS) -> Request:
    return Request(new_rid(), scripted.ids_of(prompt), {"max_new_tokens": new_tokens})


async def text_of(deltas: AsyncGenerator[Delta, None]) -> str:
    async with aclosing(deltas):
        return "".join([delta.text async for delta in deltas])


def _lives(scripts: Scripts) -> Iterator[Script]:
    given = [scripts] if isinstance(scripts, Script) else scripts
    return itertools.chain(given, itertools.repeat(given[-1]))


class Journal(logging.Handler):
    """Everything that the package logs, the engines' own output included."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._logger = logging.getLogger("pd_eagle")
        self._more = asyncio.Event()

    def attach(self) -> None:
        self._logger.addHandler(self)
        self._logger.setLevel(logging.DEBUG)

    def detach(self) -> None:
        self._logger.setLevel(logging.NOTSET)
        self._logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self._more.set()

    async def line(self, pattern: str) -> re.Match[str]:
        """Return the match of the first line that has `pattern`; waits for it."""
        return (await self.lines_with(pattern, 1))[0]

    async def lines_with(self, pattern: str, count: int) -> list[re.Match[str]]:
        """Return the matches of all lines that have `pattern`; waits for so many."""
        while True:
            self._more.clear()
            matches = [match for line in self.lines if (match := re.search(pattern, line))]
            if len(matches) >= count:
                return matches
            await self._more.wait()


class Inbox:
    """The events of one request to one worker."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[Event] = asyncio.Queue()

    async def delta(self) -> Delta:
        event = await self.events.get()
        assert isinstance(event, Delta), event
        return event

    async def failure(self) -> Failed:
        """Return the terminal failure, after whatever deltas come before it."""
        while isinstance(event := await self.events.get(), Delta):
            assert not event.finished
        return event


class Stage:
    """Starts scripted workers and services; what was started ends with the stage."""

    def __init__(self, launcher: Launcher, folder: Path, journal: Journal) -> None:
        self.launcher = launcher
        self.journal = journal
        self.deaths: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.folder = folder
        self._stack = contextlib.AsyncExitStack()

    def launch(self, plan: WorkerPlan, temp_dir: Path, script: Script) -> Launch:
        port = 7000 + int(plan.name.rpartition("-")[2]) if plan.role == "prefill" else None
        args = script.as_args()
        if plan.role != "unified":
            args |= {"disaggregation_mode": plan.role, "disaggregation_bootstrap_port": port}
        return Launch(self.launcher, args, temp_dir, port, scripted.FACTORY)

    def new_worker(self, name: str = "unified-0", role: Role = "unified") -> Worker:
        worker = Worker(
            WorkerPlan(name, role, (), 1),
            lambda worker, death: self.deaths.put_nowait((worker.name, death.how)),
        )
        self._stack.push_async_callback(worker.stop)
        return worker

    async def start(self, worker: Worker, script: Script = READY) -> None:
        await worker.start(self.launch(worker.plan, self.folder / worker.name, script))

    async def worker(
        self, script: Script = READY, name: str = "unified-0", role: Role = "unified"
    ) -> Worker:
        """Return a worker that is ready."""
        worker = self.new_worker(name, role)
        await self.start(worker, script)
        return worker

    def new_service(
        self, *roles: Role, policy: ServicePolicy = ONE_TRY, watch: Watch | None = None
    ) -> Service:
        service = Service(plan_of(*roles), policy, watch=watch)
        self._stack.push_async_callback(service.stop)
        return service

    async def start_service(
        self, service: Service, scripts: Mapping[str, Scripts] | None = None
    ) -> None:
        """Start `service`; of a list of scripts the first is for a worker's first start."""
        plans = {plan.name: plan for plan in service.plan.workers}
        chosen = {name: _lives(given) for name, given in (scripts or {}).items()}

        def launch(name: str, temp_dir: Path) -> Launch:
            script = next(chosen[name]) if name in chosen else READY
            return self.launch(plans[name], temp_dir, script)

        await service.start(launch)

    async def service(
        self,
        *roles: Role,
        scripts: Mapping[str, Scripts] | None = None,
        policy: ServicePolicy = ONE_TRY,
        watch: Watch | None = None,
    ) -> Service:
        """Return a service of these roles that is ready."""
        service = self.new_service(*roles, policy=policy, watch=watch)
        await self.start_service(service, scripts)
        return service

    def submit(self, worker: Worker, request: Request) -> Inbox:
        inbox = Inbox()
        worker.submit(Submit(request), inbox.events.put_nowait)
        return inbox

    async def handoff(self, pair: Pair, request: Request, timeout_s: float = 60.0) -> str:
        deadline = asyncio.get_running_loop().time() + timeout_s
        return await text_of(handoff.run(pair, request, deadline))

    async def idle(self, *workers: Worker) -> None:
        """Wait until the engines of `workers` run nothing."""
        for worker in workers:
            while (load := await worker.ping()) is None or load.running:
                pass

    async def close(self) -> None:
        await self._stack.aclose()
