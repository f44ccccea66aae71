"""Signals that ask a process tree to stop: the front alone acts on them.

systemd, a terminal and `timeout` send them to every process of a group at once. A worker that acted
on them would end before its running requests. It does not know what a stop consists of.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

STOP = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

# `timeout`, and a shell whose terminal closes, send their signal to a process and then to its
# group: signals within this time are one request to stop.
_TOGETHER_S = 0.1


@contextlib.contextmanager
def blocked_in_children() -> Iterator[None]:
    """Block stop signals in all processes that this thread starts within the block.

    A mask, not a handler: it holds before the first line of the new process, survives `exec`, and
    SGLang's own handlers, which it installs with the first request (0.5.23), do not undo it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def block() -> None:
    """Block stop signals in this thread, and in all processes and threads it starts from now on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)


def exit_on_stop() -> None:
    """Exit with code 0 at a stop signal; for the time before there is anything to stop.

    The first process of a container gets no signal that it has no handler for.
    """
    for number in _handled():
        signal.signal(number, _exit)


def _exit(number: int, frame: object) -> NoReturn:
    sys.stderr.write(f"pd_eagle: {signal.Signals(number).name} during the start\n")
    sys.exit(0)


def _handled() -> Iterator[signal.Signals]:
    for number in STOP:
        # nohup and its like: the process is to survive its terminal.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            yield number


class StopSignals:
    """Stop signals of this process, delivered to the running event loop."""

    def __init__(self) -> None:
        self._came: asyncio.Queue[signal.Signals] = asyncio.Queue()

    def listen(self) -> None:
        loop = asyncio.get_running_loop()
        for number in _handled():
            loop.add_signal_handler(number, self._came.put_nowait, number)

    async def next(self) -> signal.Signals:
        """Wait for a signal, drop those within the next 100 ms, and return the first."""
        first = await self._came.get()
        await asyncio.sleep(_TOGETHER_S)
        while not self._came.empty():
            self._came.get_nowait()
        return first
