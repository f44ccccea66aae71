"""A real server process for tests: `server.py` on a free port, with its log in a file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.error import HTTPError, URLError

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 800.0


class ServerProcess:
    """`server.py` with `settings` in its environment; use it as a context manager."""

    PROGRAM: ClassVar[tuple[str, ...]] = ()  # of a subclass, in the place of `script`

    def __init__(self, log: Path, *, script: str = "server.py", **settings: str) -> None:
        self.log = log
        self._script = script
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        self._environment = kept | {"HATHORA_DEFAULT_PORT": "0"} | settings
        self.url = ""

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *(self.PROGRAM or (self._script,))],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self.wait_until(lambda: self._find_url() or None, "listening")
            self.wait_until(lambda: self.get("/health/ready")[0] == 200 or None, "ready")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server and its engines; does nothing where it has ended."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def wait_until(self, check: Any, what: str, timeout_s: float = START_TIMEOUT_S) -> Any:
        """Poll `check` until it returns something; fails with the log when the server ends."""
        until = time.monotonic() + timeout_s
        while (found := check()) is None:
            if self.process.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"not {what}:\n{self.log.read_text()[-6000:]}")
            time.sleep(0.05)
        return found

    def _find_url(self) -> str:
        for line in self.log.read_text().splitlines():
            if "listening on " in line:
                self.url = line.split("listening on ")[1].split(",")[0]
        return self.url

    def get(self, path: str, timeout_s: float = 60.0) -> tuple[int, Any]:
        return self.request("GET", path, None, timeout_s)

    def post(self, path: str, body: object, timeout_s: float = 400.0) -> tuple[int, Any]:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", path, raw, timeout_s)

    def request(
        self, method: str, path: str, body: bytes | None, timeout_s: float = 60.0
    ) -> tuple[int, Any]:
        """Return status and decoded JSON; status 0 when nobody answers."""
        request = urllib.request.Request(f"{self.url}{path}", body, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                return response.status, _decoded(response.read())
        except HTTPError as error:
            with error:
                return error.code, _decoded(error.read())
        except (URLError, ConnectionError, TimeoutError):
            return 0, None

    def series(self, name: str) -> float:
        """Return one of `/metrics` that has no labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as response:
            lines = response.read().decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    def worker(self, name: str) -> dict[str, Any]:
        workers = self.get("/health")[1]["workers"]
        return next(worker for worker in workers if worker["name"] == name)


def _decoded(body: bytes) -> Any:
    return json.loads(body) if body else None


def tree(pid: int) -> set[int]:
    """Return `pid` and every process below it."""
    found = {pid}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found |= tree(int(child))
    return found


def alive(pids: set[int]) -> set[int]:
    """Return those of `pids` that still run; a zombie does not."""
    running = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            continue
        if state not in ("Z", "X"):
            running.add(pid)
    return running
