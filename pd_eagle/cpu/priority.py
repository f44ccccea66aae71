"""The priority of an engine's arithmetic on a CPU; knows nothing of SGLang."""

from __future__ import annotations

import logging
import os
import random
import time
from pathlib import Path

logger = logging.getLogger(__name__)

# On a CPU an engine's arithmetic takes what there is; whoever serves HTTP beside it goes first.
ENGINE_NICENESS = 10
# Linux may share the CPU out by session, then a thread's own niceness counts only within its own.
_SESSION_NICENESS = Path("/proc/self/autogroup")
_SESSION_NICENESS_TRIES = 30


def go_last() -> None:
    """Let every other process go before this one's arithmetic."""
    os.nice(ENGINE_NICENESS)  # in Linux: of this thread, the one that calculates
    # Only of a session of our own, which every worker is; a peer's may hold its HTTP server too.
    if os.getsid(0) == os.getppid():
        _set_session_niceness()


def _set_session_niceness() -> None:
    """Give this session's processes the engines' niceness; where that is impossible, go on.

    Linux answers EAGAIN to who writes within 100 ms of another such write of the whole machine and
    lacks CAP_SYS_ADMIN (kernel/sched/autogroup.c, proc_sched_autogroup_set_nice): engines that
    start together do.
    """
    for _ in range(_SESSION_NICENESS_TRIES):
        try:
            _SESSION_NICENESS.write_text(str(ENGINE_NICENESS))
        except BlockingIOError:
            time.sleep(random.uniform(0.1, 0.2))
        except OSError as error:  # no autogroups here, or a container forbids it
            logger.debug("the session keeps its priority: %s", error)
            return
        else:
            return
    logger.warning(
        "the session keeps its priority: other processes changed theirs all the time; only under"
        " load the front may answer later"
    )
