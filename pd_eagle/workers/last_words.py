"""Whether an engine died by its own doing, from what it said last and how its processes ended.

It does not know whose doing it was: a request's, or nobody's.
"""

from __future__ import annotations

import os
import re
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_EXCEPTION_LINE = re.compile(
    r"^(?:\[[^]]*\]\s*)?[\w.]*(?:Error|Exception|Interrupt|Failed)\b:? ?.*"
)
# How an engine that ends by itself says so. SGLang's processes catch what they fail with and say
# "… hit an exception"; faulthandler and UCX speak for fatal signals; SGLang's watchdog, and C++,
# say the rest (0.5.23). A process that is killed from outside says nothing.
_CRASH_LINE = re.compile(
    r"hit an exception|Fatal Python error|terminate called|Caught signal (?:4|6|7|8|11)\b"
    r"|exit code:? (?:-(?:4|6|7|8|11)|[1-9]\d*)\b"
)
#: Signals by which a process ends itself; others come from outside.
_OWN_SIGNALS = frozenset(
    {signal.SIGILL, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV, signal.SIGSYS}
)
# After the name in /proc/PID/stat; the whole line's 52nd.
_EXIT_STATUS_FIELD = 49
_TICKS_FIELDS = (11, 12)  # of the user and of the system


def last_exception(lines: Sequence[str]) -> str | None:
    """Return the last line that names an exception."""
    return next((line for line in reversed(lines) if _EXCEPTION_LINE.match(line)), None)


def crash_in(lines: Sequence[str]) -> str | None:
    """Return what an engine said of its own end in `lines`, its last; None if it said nothing."""
    mark = next((line for line in lines if _CRASH_LINE.search(line)), None)
    return None if mark is None else last_exception(lines) or mark


def crash_by(status: int | None) -> str | None:
    """Return how a process with this wait status ended itself; None if it did not, or not in a bad
    way.
    """
    if status is None:
        return None
    if os.WIFSIGNALED(status):
        number = signal.Signals(os.WTERMSIG(status))
        return f"killed by {number.name}" if number in _OWN_SIGNALS else None
    return f"exited with code {os.WEXITSTATUS(status)}" if os.WEXITSTATUS(status) else None


def wait_status(pid: int) -> int | None:
    """Return the wait status of a process that has ended, whoever its parent is; None if that has
    reaped it already.
    """
    fields = _stat(pid)
    return int(fields[_EXIT_STATUS_FIELD]) if fields and fields[0] == b"Z" else None


def processor_s(pid: int) -> float:
    """Return how long a process has run on a processor, all its threads together; 0.0 if it is
    gone.
    """
    fields = _stat(pid)
    ticks = sum(int(fields[field]) for field in _TICKS_FIELDS) if fields else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[bytes]:
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return []
    try:
        return os.read(fd, 4096).rpartition(b")")[2].split()
    except OSError:
        return []
    finally:
        os.close(fd)
