"""Latency of a server's liveness route, probed continuously from a separate process."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Self

# Ends when its standard input is closed.
_PROBE = """
import json, select, sys, time, urllib.request
took = []
while not select.select([sys.stdin], [], [], 0.02)[0]:
    began = time.monotonic()
    with urllib.request.urlopen(sys.argv[1], timeout=60) as response:
        response.read()
    took.append(time.monotonic() - began)
print(json.dumps(took))
"""


class Liveness:
    """Probes `url` every 20 ms within the context; `took` then has each latency in seconds."""

    def __init__(self, url: str) -> None:
        self.took: list[float] = []
        self._url = url

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROBE, self._url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.took = json.loads(self._process.communicate(timeout=90)[0])
