"""A cheap load generator: raw sockets, events counted as bytes, one process per cohort.

A cohort is a number of streams in lockstep: the engine gets a credit for the next token when every
stream has received the last one. So the engine emits as fast as clients read, and each token is an
event of its own. `python -m benchmarks.front_load '{"url": …}'` prints JSON.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

#: Events of a stream besides its tokens: first the role; last the finish reason and [DONE].
_FIRST_EVENTS, _LAST_EVENTS = 1, 2
_STALL_S = 60.0


@dataclass(slots=True)
class _Stream:
    sock: socket.socket
    events: int = 0
    tail: bytes = b""
    head: bytes = b""


class Cohort:
    """Streams in lockstep."""

    def __init__(self, url: str, body: dict[str, Any], streams: int, credits: str) -> None:
        parts = urlsplit(url)
        self._address = (str(parts.hostname), int(parts.port or 0))
        self._credits = credits
        self._count = streams
        self._tokens = int(body["max_tokens"])
        payload = json.dumps(body).encode()
        self._request = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
        ).encode() + payload
        self._selector = selectors.DefaultSelector()
        self._streams: list[_Stream] = []
        self._events = 0

    def run(self) -> dict[str, Any]:
        """Run the cohort to its end; times in seconds, of tokens since their credit."""
        engine = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        engine.connect(self._credits)
        self._connect()
        began = time.monotonic()
        for stream in self._streams:
            stream.sock.sendall(self._request)
        steps = []
        for number in range(1, self._tokens + 1):
            engine.send(str(self._count).encode())
            more = _LAST_EVENTS if number == self._tokens else 0
            steps.append(self._step(self._count * (_FIRST_EVENTS + number + more)))
        wall_s = time.monotonic() - began
        for stream in self._streams:
            stream.sock.close()
        # The first step includes reading the requests: it is the time to the first token.
        return {
            "wall_s": wall_s,
            "first_token_s": steps[0][-1],
            "token_s": sorted(s for step in steps[1:-1] for s in step),
            "generator_cpu_s": time.process_time(),
        }

    def _connect(self) -> None:
        for _ in range(self._count):
            stream = _Stream(socket.create_connection(self._address))
            stream.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(stream.sock, selectors.EVENT_READ, stream)
            self._streams.append(stream)

    def _step(self, events: int) -> list[float]:
        """Read until `events` have come in all; return the arrival times of this step's events."""
        began, arrivals = time.monotonic(), []
        while self._events < events:
            ready = self._selector.select(_STALL_S)
            if not ready:
                raise TimeoutError(f"{self._events} events, wanted {events}: {self._said()}")
            for key, _ in ready:
                if new := self._read(key.data):
                    arrivals += [time.monotonic() - began] * new
        return arrivals

    def _read(self, stream: _Stream) -> int:
        data = stream.sock.recv(65536)
        if not data:
            self._selector.unregister(stream.sock)
            return 0
        if not stream.events:
            stream.head += data
        data = stream.tail + data
        new = data.count(b"\n\n")
        stream.tail = b"\n" if data.endswith(b"\n") and not data.endswith(b"\n\n") else b""
        stream.events += new
        self._events += new
        return new

    def _said(self) -> str:
        silent = min(self._streams, key=lambda stream: stream.events)
        return f"{silent.events} of one stream, which began {silent.head[:300]!r}"


def main(argv: list[str]) -> int:
    wanted = json.loads(argv[0])
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": wanted["prompt"]}],
        "max_tokens": wanted["tokens"],
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    cohort = Cohort(wanted["url"], body, wanted["streams"], wanted["credits"])
    print(json.dumps(cohort.run()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
