"""Real SGLang engines for tests, each in a process of its own, forked from one that has SGLang
imported; the bare `sglang.Engine`, so that the CPU platform is tested without our own worker.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Self, cast

from pd_eagle import cpu

Json = dict[str, Any]

DEFAULTS: Json = {
    "device": "cpu",
    # "auto" makes float16 of float32
    "dtype": "float32",
    "attention_backend": cpu.CPU_ATTENTION_BACKEND,
    "disable_overlap_schedule": True,
    "disable_cuda_graph": True,
    "sleep_on_idle": True,
    # the pool is max_total_tokens; this is only what may be in use by then
    "mem_fraction_static": 0.8,
    "max_total_tokens": 16384,
    "max_running_requests": 64,
    "host": "127.0.0.1",
    "log_level": "warning",
}


class EngineHost:
    """A process with SGLang imported that forks one engine process per call of `engine`."""

    def __init__(self, log: Path, environment: dict[str, str] | None = None) -> None:
        self._path = log.with_suffix(".sock")
        self._log = log
        variables = dict(os.environ) | cpu.environment(offline=True) | (environment or {})
        variables.pop("PYTHONDONTWRITEBYTECODE", None)
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.engine_process", str(self._path)],
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise RuntimeError(f"no SGLang in the engine host:\n{self.log()}")

    def engine(self, before: str = "", **arguments: Any) -> TestEngine:
        """Start building an engine and return at once; its first request waits for it.

        The function `before`, "module:name", is called in the new process first.
        """
        order = {"before": before, "engine": DEFAULTS | arguments}
        return TestEngine(self._connect(), order, self)

    def call(self, target: str, *arguments: Any) -> Any:
        """Return what the function "module:name" returns, called in a fork of this process."""
        with TestEngine(self._connect(), {"call": target, "arguments": arguments}, self) as fork:
            return fork.answers()

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(240)
        connection.connect(str(self._path))
        return connection

    def log(self) -> str:
        return self._log.read_text(errors="replace")[-6000:]

    def close(self) -> None:
        self._process.kill()
        self._process.wait(10)
        if self._process.stdout:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class TestEngine:
    """The test's handle to one engine process; closing it kills that process and its children."""

    __test__ = False

    def __init__(self, connection: socket.socket, order: Json, host: EngineHost) -> None:
        self._connection = connection
        self._file = connection.makefile("rwb")
        self._host = host
        self._send(order)
        self._ready = False

    def wait_ready(self) -> Self:
        if not self._ready:
            self._receive()
            self._ready = True
        return self

    def submit(self, requests: list[Json]) -> None:
        """Start `requests` (arguments of `Engine.async_generate`) all at once."""
        self.wait_ready()
        self._send(requests)

    def answers(self) -> list[Json]:
        """Wait for the results of the last `submit`, in its order."""
        return cast("list[Json]", self._receive())

    def generate(self, requests: list[Json]) -> list[Json]:
        self.submit(requests)
        return self.answers()

    def close(self) -> None:
        self._connection.close()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _send(self, value: Any) -> None:
        self._file.write(json.dumps(value).encode() + b"\n")
        self._file.flush()

    def _receive(self) -> Any:
        line = self._file.readline()
        if not line:
            raise RuntimeError(f"the engine died:\n{self._host.log()}")
        return json.loads(line)


def _import_engine() -> Any:
    import multiprocessing

    import sglang.srt.entrypoints.engine as engine
    import sglang.srt.managers.detokenizer_manager
    import sglang.srt.managers.scheduler
    import sglang.srt.models.registry  # noqa: F401

    # SGLang 0.5.23 forces "spawn" (entrypoints/engine.py): a forked scheduler starts in seconds.
    multiprocessing.set_start_method("fork", force=True)
    engine.mp.set_start_method = lambda *args, **kwargs: None
    return engine.Engine


def _host(path: str) -> None:
    # A test run that is killed must not leave it: PR_SET_PDEATHSIG.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    engine_class = _import_engine()
    Path(path).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)  # noqa: T201
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            _serve(connection, engine_class)
        # Else nobody would see the end of it when the engine dies.
        connection.close()


def _serve(connection: socket.socket, engine_class: Any) -> None:
    file = connection.makefile("rwb")
    order = json.loads(file.readline())
    if "call" in order:
        returned = pkgutil.resolve_name(order["call"])(*order["arguments"])
        file.write(json.dumps(returned).encode() + b"\n")
        file.flush()
        os._exit(0)
    if order["before"]:
        pkgutil.resolve_name(order["before"])()
    engine = engine_class(**order["engine"])
    file.write(b"true\n")
    file.flush()
    threading.Thread(target=_requests, args=(file, engine), daemon=True).start()
    engine.loop.run_forever()


def _requests(file: Any, engine: Any) -> None:
    try:
        for line in file:
            future = asyncio.run_coroutine_threadsafe(_run(engine, json.loads(line)), engine.loop)
            file.write(json.dumps(future.result()).encode() + b"\n")
            file.flush()
    finally:
        os.killpg(0, signal.SIGKILL)


async def _run(engine: Any, requests: list[Json]) -> list[Json]:
    answers: list[Json] = await asyncio.gather(*(engine.async_generate(**r) for r in requests))
    return answers


if __name__ == "__main__":
    _host(sys.argv[1])
