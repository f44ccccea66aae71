"""The systems that `bench_front` compares: ours, ours at another commit, SGLang's, its routers.

Starts and ends them over the same scripted scheduler; knows nothing of load or figures.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.asking import CHAT, chat_body
from benchmarks.provenance import LOGS, ROOT
from benchmarks.scripted_sglang import CREDITS
from benchmarks.systems import free_ports

if TYPE_CHECKING:
    from pathlib import Path

OURS, SGLANG, ROUTER, MINI_LB = "ours", "sglang", "sglang_router", "mini_lb"
PEERS = (SGLANG, ROUTER, MINI_LB)
BEFORE = "before"
PROMPT = "Write down what the quick brown fox did, in one long sentence."
START_TIMEOUT_S = 90.0
# Twice the most streams at once.
MAX_INFLIGHT = 2000


@dataclass(slots=True)
class Side:
    """One system: its address, and the processes between client and engine."""

    name: str
    url: str
    credits: Path
    front: list[int]
    workers: list[int] = field(default_factory=list)


class Stage:
    """Starts and ends all systems."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ending = contextlib.ExitStack()

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def start(self, peers: list[str], before: str | None = None) -> list[Side]:
        """Start ours, ours at the commit `before`, and `peers`, all at once; return them when they
        answer.
        """
        mine = {OURS: ROOT} | ({BEFORE: self._exported(before)} if before else {})
        started = {name: self._launch_ours(name, folder) for name, folder in mine.items()}
        sides = self._peers(peers) if peers else []
        return [*(self._ours(name, process) for name, process in started.items()), *sides]

    def _exported(self, commit: str) -> Path:
        folder = self._folder / "exported"
        folder.mkdir()
        packed = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True)
        if packed.returncode:
            raise RuntimeError(f"--before {commit}: {packed.stderr.decode()}")
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            # As an attribute, not an argument: Python before 3.11.4 ignores it.
            archive.extraction_filter = getattr(tarfile, "data_filter", None)
            archive.extractall(folder)
        return folder

    def _launch_ours(self, name: str, folder: Path) -> subprocess.Popen[bytes]:
        settings = {
            CREDITS: str(self._folder / name),
            "HATHORA_DEFAULT_PORT": "0",
            "MAX_INFLIGHT": str(MAX_INFLIGHT),
        }
        return self._launch(name, ["benchmarks.scripted_sglang", "ours"], settings, folder)

    def _ours(self, name: str, process: subprocess.Popen[bytes]) -> Side:
        url = self._wait_for(name, process, _listening)
        self._until_ready(name, process, f"{url}/health/ready")
        with urllib.request.urlopen(f"{url}/health", timeout=10) as response:
            workers = [worker["pid"] for worker in json.load(response)["workers"]]
        return Side(name, url, self._folder / name, [process.pid], workers)

    def _peers(self, names: list[str]) -> list[Side]:
        unified, prefill, decode, bootstrap = free_ports(4)
        entries: list[dict[str, Any]] = [{"port": unified, "credits": str(self._folder / SGLANG)}]
        if names != [SGLANG]:
            shared = {"disaggregation_transfer_backend": "nixl"}
            backup = {"disaggregation_decode_retraction_backup": "cpu_tensor"}
            at = {"disaggregation_bootstrap_port": bootstrap}
            entries += [
                {"port": port, "credits": str(self._folder / role), "disaggregation_mode": role}
                | shared
                | more
                for role, port, more in (("prefill", prefill, at), ("decode", decode, backup))
            ]
        process = self._launch(
            "peers", ["benchmarks.scripted_sglang", "peers", json.dumps(entries)], {}
        )
        pids = json.loads(self._wait_for("peers", process, _pids))
        for entry in entries:
            self._until_ready("peers", process, f"http://127.0.0.1:{entry['port']}/health")
        sides = [Side(SGLANG, f"http://127.0.0.1:{unified}", self._folder / SGLANG, pids[:1])]
        behind = (name for name in names if name != SGLANG)
        return sides + [self._router(n, prefill, bootstrap, decode, pids[1:]) for n in behind]

    def _router(
        self, name: str, prefill: int, bootstrap: int, decode: int, servers: list[int]
    ) -> Side:
        port, metrics = free_ports(2)
        command = ["sglang_router.launch_router", "--pd-disaggregation", "--host", "127.0.0.1"]
        command += ["--prefill", f"http://127.0.0.1:{prefill}", str(bootstrap)]
        command += ["--decode", f"http://127.0.0.1:{decode}", "--port", str(port)]
        command += ["--prometheus-port", str(metrics)]
        command += ["--mini-lb"] if name == MINI_LB else []
        process = self._launch(name, command, {})
        url = f"http://127.0.0.1:{port}"
        self._until_ready(name, process, f"{url}/health")
        self._until_ready(name, process, f"{url}{CHAT}", chat_body(PROMPT, 4, stream=False))
        own = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        return Side(name, url, self._folder / "decode", [process.pid, *own, *servers])

    def _launch(
        self, name: str, module: list[str], settings: dict[str, str], folder: Path = ROOT
    ) -> subprocess.Popen[bytes]:
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        with self._log(name).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *module],
                cwd=folder,  # its modules come first
                env=kept | settings,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._ending.callback(_end, process)
        return process

    def _log(self, name: str) -> Path:
        return LOGS / f"front_{name}.log"

    def _wait_for(self, name: str, process: subprocess.Popen[bytes], find: Any) -> Any:
        until = time.monotonic() + START_TIMEOUT_S
        while (found := find(self._log(name).read_text())) is None:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{name} did not start:\n{self._log(name).read_text()[-3000:]}")
            time.sleep(0.05)
        return found

    def _until_ready(
        self, name: str, process: subprocess.Popen[bytes], url: str, body: Any = None
    ) -> None:
        self._wait_for(name, process, lambda _: _answers(url, body))


def _listening(log: str) -> str | None:
    lines = [line for line in log.splitlines() if "listening on http" in line]
    return lines[0].partition("listening on ")[2].partition(",")[0] if lines else None


def _pids(log: str) -> str | None:
    return next((line for line in log.splitlines() if re.fullmatch(r"\[[\d, ]+\]", line)), None)


def _answers(url: str, body: Any = None) -> bool | None:
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=5) as response:
            return response.status == 200 or None
    except OSError:
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # it leads a session of its own
    process.wait()
    assert process.stdin is not None
    process.stdin.close()
