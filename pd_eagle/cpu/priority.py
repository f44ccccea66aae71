"""The priority of an engine's arithmetic on a CPU; knows nothing of SGLang."""

from __future__ import annotations

import logging
import os
import random
import time
from pathlib import Path

logger = logging.getLogger(__name__)

# On a CPU an engine's arithmetic uses every core; the HTTP server beside it has priority.
ENGINE_NICENESS = 10
# Linux may divide CPU time by session; then a thread's niceness counts only within its session.
_SESSION_NICENESS = Path("/proc/self/autogroup")
_SESSION_NICENESS_TRIES = 30


def lower() -> None:
    """Lower the priority of this process's arithmetic below that of all others."""
    os.nice(ENGINE_NICENESS)  # in Linux: of this thread, the one that calculates
    # Only of a worker's own session; any other may hold the HTTP server too.
    if os.getsid(0) == os.getppid():
        _set_session_niceness()


def _set_session_niceness() -> None:
    """Set this session's niceness to the engines'; continue where that is impossible.

    Without CAP_SYS_ADMIN Linux answers EAGAIN within 100 ms of another such write on the machine
    (kernel/sched/autogroup.c, proc_sched_autogroup_set_nice): engines that start together hit that.
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
