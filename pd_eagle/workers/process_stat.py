"""What Linux says of a process in /proc/PID/stat; does not know what the process is for."""

from __future__ import annotations

import os

# Counted after the process's name, which may hold blanks; in the whole line it is the 52nd.
_EXIT_STATUS_FIELD = 49
_TICKS_FIELDS = (11, 12)  # in user and in kernel mode


def wait_status(pid: int) -> int | None:
    """Return the wait status of a process that has ended, whoever its parent is; None if it was
    reaped already.
    """
    fields = _stat(pid)
    return int(fields[_EXIT_STATUS_FIELD]) if fields and fields[0] == b"Z" else None


def cpu_time_s(pid: int) -> float:
    """Return the CPU time of all threads of a process, in seconds; 0.0 if it is gone."""
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
