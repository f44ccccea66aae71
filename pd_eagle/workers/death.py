"""How a worker died, and whether its engine crashed or was killed from outside.

That is read from its last output and from how its processes ended. It does not know whether a
request caused the crash.
"""

from __future__ import annotations

import logging
import os
import re
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pd_eagle.errors import StartFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_LAST_LINES = 15
#: From an engine's last words to its death: SGLang may take a while to clean up.
LAST_WORDS_S = 10.0

_EXCEPTION_LINE = re.compile(
    r"^(?:\[[^]]*\]\s*)?[\w.]*(?:Error|Exception|Interrupt|Failed)\b:? ?.*"
)
# What an engine that crashes writes. SGLang's processes catch their exceptions and write "… hit an
# exception"; faulthandler and UCX report fatal signals; SGLang's watchdog and the C++ runtime
# report the rest (0.5.23). A process that is killed from outside writes nothing.
_CRASH_LINE = re.compile(
    r"hit an exception|Fatal Python error|terminate called|Caught signal (?:4|6|7|8|11)\b"
    r"|exit code:? (?:-(?:4|6|7|8|11)|[1-9]\d*)\b"
)
#: Signals that a process causes itself; others come from outside.
_OWN_SIGNALS = frozenset(
    {signal.SIGILL, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV, signal.SIGSYS}
)


@dataclass(frozen=True, slots=True)
class Death:
    """How a serving worker died.

    `rids` are the requests that were in its engine, and those aborted so recently that they may
    have been. `crash` is what the engine itself wrote or did; None: it was killed, or is treated
    as dead.
    """

    how: str
    rids: tuple[str, ...]
    crash: str | None = None


def last_exception(lines: Sequence[str]) -> str | None:
    """Return the last line that names an exception."""
    return next((line for line in reversed(lines) if _EXCEPTION_LINE.match(line)), None)


def crash_in(lines: Sequence[str]) -> str | None:
    """Return what an engine wrote of its crash in its last `lines`; None if it wrote nothing."""
    mark = next((line for line in lines if _CRASH_LINE.search(line)), None)
    return None if mark is None else last_exception(lines) or mark


def crash_by(status: int | None) -> str | None:
    """Return how a process with this wait status crashed; None if it exited with code 0 or was
    killed from outside.
    """
    if status is None:
        return None
    if os.WIFSIGNALED(status):
        number = signal.Signals(os.WTERMSIG(status))
        return f"killed by {number.name}" if number in _OWN_SIGNALS else None
    return f"exited with code {os.WEXITSTATUS(status)}" if os.WEXITSTATUS(status) else None


def start_failure(name: str, why: str, output: Sequence[str]) -> StartFailed:
    """Return the error of a worker that could not start, with its last lines of `output`."""
    tail = "\n".join(f"  {name} | {line}" for line in output[-_LAST_LINES:])
    return StartFailed(f"{name} could not start: {why}\n{tail}")


def attempt(name: str, step: Callable[..., Result], *args: Any) -> Result | None:
    """Return what a step after a worker's death returns.

    Its failure is a defect, which is logged and must not stop the next step.
    """
    try:
        return step(*args)
    except Exception:
        logger.exception("%s: a step after its death failed", name)
        return None
