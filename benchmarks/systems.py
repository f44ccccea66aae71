"""The systems that are compared: ours and SGLang's own servers, with the same engine arguments.

Starts and stops them, reports CPU and memory of their processes; knows nothing of load.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import psutil

from benchmarks.asking import CHAT
from benchmarks.provenance import LOGS, ROOT
from pd_eagle.plan import deployment
from pd_eagle.plan.config import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pd_eagle.plan.deployment import Deployment

START_TIMEOUT_S = 240.0
# SGLang's router and servers wait for open connections; nothing is measured then.
STOP_TIMEOUT_S = 8.0
# A system counts as started at its first answer, not at its first connection.
FIRST = "What is the capital of France? Answer briefly."
#: SGLang's command line accepts only its own attention backends; our CPU platform sets ours.
_NOT_ON_COMMAND_LINE = ("attention_backend",)
# Without it SGLang chooses a different limit for each role.
ENGINE_ARGS = {"max_running_requests": 64}

Command = list[str]


@dataclass(frozen=True)
class Setup:
    """How to start one system: its commands, run at the same time, and the address to ask."""

    commands: list[Command]
    environment: dict[str, str]
    url: str


def free_ports(count: int) -> list[int]:
    """Return ports that are free now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def options(arguments: Mapping[str, Any]) -> Command:
    """Return engine arguments as options of SGLang's command line."""
    words: Command = []
    for name, value in arguments.items():
        if name in _NOT_ON_COMMAND_LINE or value is False:
            continue
        option = f"--{name.replace('_', '-')}"
        words += [option] if value is True else [option, str(value)]
    return words


def decided(**settings: str) -> Deployment:
    """Return what our server would start: the peers get the same arguments and environment."""
    chosen = {"ENGINE_ARGS": json.dumps(ENGINE_ARGS)} | settings
    return deployment.decide(Settings.from_env(chosen), dict(os.environ))


def _server(arguments: Mapping[str, Any], port: int) -> Command:
    own = [sys.executable, "-m", "sglang.launch_server", "--host", "127.0.0.1", "--port", str(port)]
    return own + options(arguments)


def ours(**settings: str) -> Setup:
    """`server.py`, as `make serve` starts it."""
    (port,) = free_ports(1)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    chosen = {"HATHORA_DEFAULT_PORT": str(port), "ENGINE_ARGS": json.dumps(ENGINE_ARGS)} | settings
    command = [sys.executable, "server.py"]
    return Setup([command], environment | chosen, f"http://127.0.0.1:{port}")


def sglang_pd() -> Setup:
    """SGLang's prefill and decode servers behind its router."""
    found = decided(PD_MODE="on")
    *ports, bootstrap, router, metrics = free_ports(5)
    servers = [
        _server(found.engine_args(worker, bootstrap), port)
        for worker, port in zip(found.plan.workers, ports, strict=True)
    ]
    prefill, decode = (f"http://127.0.0.1:{port}" for port in ports)
    command = [
        *(sys.executable, "-m", "sglang_router.launch_router", "--pd-disaggregation"),
        *("--prefill", prefill, str(bootstrap), "--decode", decode),
        *("--host", "127.0.0.1", "--port", str(router), "--prometheus-port", str(metrics)),
        # Its default checks only every 30 s whether the servers have started.
        *("--worker-startup-check-interval", "1"),
    ]
    return Setup([*servers, command], found.environment, f"http://127.0.0.1:{router}")


def sglang_alone(settings: Mapping[str, str] | None = None, **variables: str) -> Setup:
    """One SGLang server, with the engine arguments that `settings` give ours."""
    found = decided(PD_MODE="off", **(settings or {}))
    (port,) = free_ports(1)
    arguments = found.engine_args(found.plan.workers[0], None)
    if settings is not None:  # asked by clients, not by our front
        arguments.pop("incremental_streaming_output")
    command = _server(arguments, port)
    return Setup([command], found.environment | variables, f"http://127.0.0.1:{port}")


OURS_PD, ROUTER = "pd_eagle PD", "SGLang PD, router"
SYSTEMS: dict[str, Callable[[], Setup]] = {
    OURS_PD: lambda: ours(PD_MODE="on"),
    ROUTER: sglang_pd,
    "pd_eagle unified": lambda: ours(PD_MODE="off"),
    "SGLang": sglang_alone,
    "SGLang, Rust server": lambda: sglang_alone(SGLANG_RUST_SERVER="1"),
}


class NotStarted(RuntimeError):
    """A system did not answer its first request."""


@dataclass
class Running:
    """One running system; use it as a context manager.

    Entering returns after the first answered request, `ready_s` after the start.
    """

    name: str
    setup: Setup
    ready_s: float = 0.0
    first_answer: str = ""
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @classmethod
    def started(cls, name: str, url: str, process: subprocess.Popen[bytes]) -> Self:
        """Return a system that the caller has started and will stop."""
        return cls(name, Setup([], {}, url), _processes=[process])

    @property
    def url(self) -> str:
        return self.setup.url

    def __enter__(self) -> Self:
        LOGS.mkdir(parents=True, exist_ok=True)
        self._stack = contextlib.ExitStack()
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        environment = self.setup.environment | {"TMPDIR": folder}
        began = time.monotonic()
        for number, command in enumerate(self.setup.commands):
            log = self._stack.enter_context(self._log(number).open("wb"))
            self._processes.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )
        self.first_answer = self._first_answer(began + START_TIMEOUT_S)
        self.ready_s = time.monotonic() - began

    def _log(self, number: int) -> Any:
        return LOGS / f"serving-{self.name.lower().replace(',', '').replace(' ', '-')}-{number}.log"

    def _first_answer(self, until: float) -> str:
        while time.monotonic() < until:
            for number, process in enumerate(self._processes):
                if process.poll() is not None:
                    said = self._log(number).read_text(errors="replace").strip()[-600:]
                    raise NotStarted(f"{self.name} ended with {process.returncode}: {said}")
            with contextlib.suppress(urllib.error.URLError, OSError):
                return self.ask(FIRST, 16)
            time.sleep(0.05)
        raise NotStarted(f"{self.name}: no answer after {START_TIMEOUT_S:.0f} s")

    def ask(self, prompt: str, new_tokens: int) -> str:
        """Return the greedy answer to `prompt`; raises OSError when there is none."""
        body = {
            "model": "default",
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": new_tokens,
        }
        request = urllib.request.Request(
            self.url + CHAT, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return str(json.load(response)["choices"][0]["message"]["content"])

    def processes(self) -> list[psutil.Process]:
        """Return every live process of the system."""
        found = []
        for process in self._processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                root = psutil.Process(process.pid)
                found += [root, *root.children(recursive=True)]
        return found

    def cpu_s(self) -> float:
        """Return the CPU time of all processes so far, user and system."""
        used = 0.0
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                used += sum(process.cpu_times()[:2])
        return used

    def memory_mib(self) -> dict[str, float]:
        """Return the private memory of all processes (USS), and with their share of shared
        memory (PSS).
        """
        total = {"uss": 0.0, "pss": 0.0}
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                found = process.memory_full_info()
                total["uss"] += found.uss / 2**20
                total["pss"] += found.pss / 2**20
        return {name: round(value, 1) for name, value in total.items()}

    def __exit__(self, *_: object) -> None:
        everyone = self.processes()
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs(everyone, STOP_TIMEOUT_S)
        for one in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        for process in self._processes:
            process.wait(STOP_TIMEOUT_S)
        self._stack.close()
