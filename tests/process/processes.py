"""Processes as the kernel sees them: who carries a mark, and when they are gone."""

from __future__ import annotations

import contextlib
import os
import select
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Set in the environment of what a test starts; children inherit it, also when they are orphaned.
MARK = "PD_EAGLE_TEST_MARK"


def alive_with(mark: str) -> set[int]:
    """Return the pids of all living processes that were started with `mark`."""
    wanted = f"{MARK}={mark}".encode()
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                variables = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if wanted in variables:
                found.add(int(folder.name))
    return found


def still_alive(pids: Iterable[int], timeout_s: float) -> set[int]:
    """Return which of `pids` have not ended when the time is up; returns as soon as all have."""
    deadline = time.monotonic() + timeout_s
    return {pid for pid in pids if not _ends_before(pid, deadline)}


def _ends_before(pid: int, deadline: float) -> bool:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
    finally:
        os.close(pidfd)


def children() -> set[int]:
    """Return the pids of this process's children, zombies among them."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has ended meanwhile
            found.update(map(int, (task / "children").read_text().split()))
    return found


def open_files() -> dict[int, str]:
    """Return what every descriptor of this process is."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the folder's own
    return found
