"""Descriptors that forked children of this process must not inherit: closed in each child.

The kernel ends a worker when no process holds the other end of its lifeline any more. A child of
`os.fork` or of multiprocessing would inherit that end, and the engines would live as long as the
child; a reserved port or GPU would stay taken. Children that execute another program inherit
nothing: Python's descriptors are closed on exec. It does not know what the descriptors are for.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from pathlib import Path
    from typing import Any, Protocol

    class _Folder(Protocol):
        _finalizer: Any  # weakref.finalize


# Held while a descriptor is created and added to a table below, and during every fork: else another
# thread could fork in between.
_lock = threading.RLock()
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
#: Descriptor → inode: the number alone may be another file's by now.
_pipes: dict[int, int] = {}
_loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
_folders: weakref.WeakSet[_Folder] = weakref.WeakSet()


def private_socket(family: socket.AddressFamily) -> socket.socket:
    """Return a socket that forked children of this process do not have."""
    with _lock:
        made = socket.socket(family)
        _sockets.add(made)
    return made


def private_socketpair() -> tuple[socket.socket, socket.socket]:
    """Return a pair of connected sockets that forked children of this process do not have."""
    with _lock:
        pair = socket.socketpair()
        _sockets.update(pair)
    return pair


def private_pipe() -> tuple[int, int]:
    """Return the ends of a pipe, to read and to write, that forked children do not have."""
    with _lock:
        for fd in [fd for fd, inode in _pipes.items() if _inode(fd) != inode]:
            del _pipes[fd]  # closed since
        pipe = os.pipe()
        _pipes.update({fd: os.fstat(fd).st_ino for fd in pipe})
    return pipe


def private_open(path: Path, flags: int) -> int:
    """Return a descriptor, as `os.open`, that forked children of this process do not have."""
    with _lock:
        fd = os.open(path, flags)
        _pipes[fd] = os.fstat(fd).st_ino
    return fd


def private_folder(folder: _Folder) -> None:
    """Keep a forked child of this process from removing `folder` when it ends."""
    _folders.add(folder)


def private_loop(loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
    """Return `loop`, whose own descriptors forked children do not have.

    Except uvloop's, which are not accessible: they only wake the loop and keep nothing alive.
    """
    _loops.add(loop)
    return loop


def _inode(fd: int) -> int | None:
    try:
        return os.fstat(fd).st_ino
    except OSError:
        return None


def _close_in_child() -> None:
    for ours in list(_sockets):
        # Not close(): uvloop holds a socket that it serves, and close() would be deferred.
        with contextlib.suppress(OSError):
            os.close(ours.detach())
    for fd, inode in _pipes.items():
        if _inode(fd) == inode:
            os.close(fd)
    for loop in list(_loops):
        # loop.close() refuses while the loop runs, as it does in the parent. CPython 3.11, 3.12.
        for name in ("_selector", "_ssock", "_csock"):
            if (held := getattr(loop, name, None)) is not None:
                held.close()
    for folder in list(_folders):
        folder._finalizer.detach()
    _loops.clear()
    _sockets.clear()
    _pipes.clear()
    _folders.clear()
    _lock.release()


os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_close_in_child
)
