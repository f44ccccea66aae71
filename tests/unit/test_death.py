"""What an engine's last output and its wait status say of how it died."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pd_eagle.workers.death import crash_by, crash_in, last_exception
from pd_eagle.workers.process_stat import wait_status

TAILS = {
    "the last exception": (
        ["Traceback (most recent call last):", "ValueError: first", "  x", "RuntimeError: second"],
        "RuntimeError: second",
    ),
    "of a package": (
        ["torch.cuda.OutOfMemoryError: CUDA out of memory.", "exiting"],
        "torch.cuda.OutOfMemoryError: CUDA out of memory.",
    ),
    "in a line of SGLang's log": (
        ["[2025-01-01 00:00:00 TP0] ValueError: no such file", "[rank0] bye"],
        "[2025-01-01 00:00:00 TP0] ValueError: no such file",
    ),
    "without a message": (["AssertionError"], "AssertionError"),
    "prose that speaks of errors": (["an Error: no", "the ValueError was seen"], None),
    "nothing at all": ([], None),
}


@pytest.mark.parametrize(("lines", "found"), TAILS.values(), ids=TAILS.keys())
def test_the_headline_is_the_last_exception(lines: list[str], found: str | None) -> None:
    assert last_exception(lines) == found


CRASHES = {
    "an exception": (
        ["Scheduler hit an exception: Traceback (most recent call last):", "IndexError: 129"],
        "IndexError: 129",
    ),
    "a fatal signal": (
        ["Fatal Python error: Segmentation fault", "", "Current thread …"],
        "Fatal Python error: Segmentation fault",
    ),
    "as UCX tells of it": (
        ["[host:1:0:1] Caught signal 11 (Segmentation fault: address not mapped)"],
        "[host:1:0:1] Caught signal 11 (Segmentation fault: address not mapped)",
    ),
    "of C++": (
        ["terminate called after throwing an instance of 'c10::Error'"],
        "terminate called after throwing an instance of 'c10::Error'",
    ),
    "told by the watchdog": (
        ["Subprocess scheduler_0 (pid=7) crashed with exit code -6. Triggering SIGQUIT"],
        "Subprocess scheduler_0 (pid=7) crashed with exit code -6. Triggering SIGQUIT",
    ),
    "killed from outside": (
        ["Subprocess scheduler_0 (pid=7) crashed with exit code -9. Triggering SIGQUIT"],
        None,
    ),
    "one request's failure": (["request r failed in the engine", "ValueError: no such"], None),
    "nothing at all": ([], None),
}


@pytest.mark.parametrize(("lines", "found"), CRASHES.values(), ids=CRASHES.keys())
def test_a_crash_is_told_from_a_kill_by_the_last_words(lines: list[str], found: str | None) -> None:
    assert crash_in(lines) == found


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("import os; os.abort()", "killed by SIGABRT"),
        ("import os; os._exit(3)", "exited with code 3"),
        ("import os; os.kill(os.getpid(), 11)", "killed by SIGSEGV"),
        ("import os; os.kill(os.getpid(), 9)", None),
        ("import os; os.kill(os.getpid(), 15)", None),
        ("", None),
    ],
)
def test_a_crash_is_told_from_a_kill_by_the_wait_status(script: str, found: str | None) -> None:
    child = subprocess.Popen([sys.executable, "-S", "-c", script], stderr=subprocess.DEVNULL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie, as its host leaves it
    status = wait_status(child.pid)
    assert status is not None
    assert crash_by(status) == found
    child.wait()
    assert wait_status(child.pid) is None
    assert crash_by(None) is None
