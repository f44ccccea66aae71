"""SGLang's prefill and decode servers behind its own router: the system ours is compared with.

On a dry run they use our CPU platform, like every engine there. Measures nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

from benchmarks.systems import free_ports
from pd_eagle import cpu

if TYPE_CHECKING:
    from pathlib import Path

# On a fresh machine the first engines compile their kernels, which took nearly 150 s.
START_TIMEOUT_S = 300.0
_ON_THE_CPU: dict[str, object] = {
    "sampling_backend": "pytorch",
    "disable_cuda_graph": True,
    "disable_overlap_schedule": True,
    "page_size": 1,
    "max_total_tokens": 65536,
    "mem_fraction_static": 0.8,
}


class SGLangPair:
    """Two servers and a router; the context manager yields the router's address."""

    def __init__(self, folder: Path, model: Path, args: dict[str, Any], device: str) -> None:
        self._folder = folder
        self._model = model
        self._args = args | (_ON_THE_CPU if device == "cpu" else {})
        self._device = device
        self._stack = ExitStack()

    def __enter__(self) -> str:
        with ExitStack() as starting:
            prefill, decode, router, bootstrap, metrics = free_ports(5)
            ports = [("prefill", prefill, bootstrap, 0), ("decode", decode, None, 1)]
            servers = []
            for role, port, bootstrap_port, gpu in ports:
                command = self._server(role, port, bootstrap_port, gpu)
                server = self._process(role, command, self._environment(), port)
                servers.append(starting.enter_context(server))
            for server in servers:
                server.wait_until_healthy()
            command = _router(router, metrics, prefill, bootstrap, decode)
            routing = self._process("router", command, dict(os.environ), router)
            starting.enter_context(routing).wait_until_healthy()
            self._stack = starting.pop_all()
        return f"http://127.0.0.1:{router}"

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _server(self, role: str, port: int, bootstrap_port: int | None, gpu: int) -> list[str]:
        args: dict[str, object] = {
            "model_path": self._model,
            "served_model_name": "default",
            "host": "127.0.0.1",
            "port": port,
            "device": self._device,
            "disaggregation_mode": role,
            "disaggregation_transfer_backend": "nixl",
            "sleep_on_idle": True,
        } | self._args
        if bootstrap_port:
            args["disaggregation_bootstrap_port"] = bootstrap_port
        elif self._device == "cpu":
            args["disaggregation_decode_retraction_backup"] = "cpu_tensor"
        if self._device != "cpu":  # both see every GPU, or UCX could not use CUDA IPC between them
            args["base_gpu_id"] = gpu
        return [sys.executable, "-m", "sglang.launch_server", *_options(args)]

    def _environment(self) -> dict[str, str]:
        if self._device == "cpu":
            return dict(os.environ) | cpu.environment(offline=True)
        return dict(os.environ)

    def _process(
        self, name: str, command: list[str], environment: dict[str, str], port: int
    ) -> _Process:
        return _Process(command, environment, port, self._folder / f"sglang-{name}.log")


class _Process:
    """A process and its descendants, killed together."""

    def __init__(
        self, command: list[str], environment: dict[str, str], port: int, log: Path
    ) -> None:
        self._command, self._environment, self._port = command, environment, port
        self._log = log

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def wait_until_healthy(self) -> None:
        """Raises `RuntimeError` with the end of the log when the process ends or takes too long."""
        until = time.monotonic() + START_TIMEOUT_S
        while not _healthy(self._port):
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"not healthy: {self._log.read_text(errors='replace')[-1500:]}")
            time.sleep(0.2)


def _options(args: dict[str, object]) -> list[str]:
    words: list[str] = []
    for name, value in args.items():
        option = f"--{name.replace('_', '-')}"
        words += [option] if value is True else [option, str(value)]
    return words


def _router(port: int, metrics: int, prefill: int, bootstrap: int, decode: int) -> list[str]:
    here = "http://127.0.0.1"
    return [
        *(sys.executable, "-m", "sglang_router.launch_router", "--pd-disaggregation"),
        *("--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics)),
        *("--prefill", f"{here}:{prefill}", str(bootstrap), "--decode", f"{here}:{decode}"),
        *("--policy", "round_robin"),
    ]


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
