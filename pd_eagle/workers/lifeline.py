"""Binds a process group's life to a socket: the kernel kills the group when the other end closes.

That needs no thread and no event loop, and works while Python is still importing. It does not know
which process holds the other end.
"""

from __future__ import annotations

import fcntl
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

_F_SETSIG = 10  # Linux, asm-generic/fcntl.h; Python's fcntl does not name it


def lead_group_bound_to(lifeline: socket.socket) -> None:
    """Make this process the leader of a session whose group dies when `lifeline` hangs up.

    Nothing may ever be written to the other end: any event on the socket is the signal. Forked
    children inherit the binding with the descriptor, so the group dies even after its leader.
    """
    if os.getsid(0) != os.getpid():
        os.setsid()
    bind_group(lifeline, os.getpid())
    if not _peer_alive(lifeline):  # it hung up before we were bound
        os.killpg(0, signal.SIGKILL)


def bind_group(lifeline: socket.socket, group: int) -> None:
    """Let the kernel kill the process group when `lifeline` hangs up.

    The binding belongs to the open socket, not to the caller: the process that spawns a leader
    binds it before the leader can run a line, with the descriptor that the leader inherits.
    """
    fcntl.fcntl(lifeline, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -group)
    flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC)


def _peer_alive(lifeline: socket.socket) -> bool:
    import select

    poll = select.poll()
    poll.register(lifeline, select.POLLIN)
    return not poll.poll(0)
