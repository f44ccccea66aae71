"""The last lines of a process's output; does not know what they mean."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_LAST_LINES = 200
# More than a pipe holds; a process that still writes must not keep `close` from ending.
_LAST_READS = 16
# A progress bar redraws its line without ever ending it.
_LONGEST_LINE_BYTES = 64 * 1024


class OutputTail:
    """Reads a process's output as it comes; keeps the last lines and calls `on_line` for each."""

    def __init__(self, fd: int, on_line: Callable[[str], None]) -> None:
        self.lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._times: deque[float] = deque(maxlen=_LAST_LINES)
        self._fd = fd
        self._partial = b""
        self._on_line = on_line
        self._closed = asyncio.Event()
        os.set_blocking(fd, False)
        asyncio.get_running_loop().add_reader(fd, self._read)

    def _read(self) -> None:
        if self._read_once() == b"":
            self.close()

    def _read_once(self) -> bytes | None:
        """Return what was read: b"" at the end of the output, None if there is nothing yet."""
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return None
        *lines, self._partial = (self._partial + data).split(b"\n")
        for raw in lines:
            self._add(raw)
        if len(self._partial) > _LONGEST_LINE_BYTES:
            self._add(self._partial.rpartition(b"\r")[2][-_LONGEST_LINE_BYTES:])
            self._partial = b""
        return data

    def _add(self, raw: bytes) -> None:
        line = raw.decode(errors="replace").rstrip()
        self.lines.append(line)
        self._times.append(time.monotonic())
        self._on_line(line)

    def lines_of_last(self, seconds: float) -> list[str]:
        """Return the lines, blank ones left out, that came within the last `seconds`."""
        since = time.monotonic() - seconds
        times = zip(self.lines, self._times, strict=True)
        return [line for line, came_at in times if came_at >= since and line.strip()]

    async def wait_closed(self, timeout_s: float) -> None:
        """Wait until every process that could still write is gone, or for `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closed.wait(), timeout_s)

    def close(self) -> None:
        """Read what is there, the last output of a process that has died, and stop reading."""
        if self._closed.is_set():
            return
        self._closed.set()
        asyncio.get_running_loop().remove_reader(self._fd)
        for _ in range(_LAST_READS):
            if not self._read_once():
                break
        if self._partial:
            self._add(self._partial)
        os.close(self._fd)
