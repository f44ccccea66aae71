"""A worker's process as the front holds it: its exit in words."""

from __future__ import annotations

import signal
import socket

import pytest

from pd_eagle.workers.launch import WorkerProcess


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (None, "ended"),
        (0, "exited with code 0"),
        (3 << 8, "exited with code 3"),
        (signal.SIGKILL, "killed by SIGKILL"),
        (signal.SIGSEGV | 0x80, "killed by SIGSEGV"),  # with a core dump
    ],
)
async def test_an_exit_in_words(status: int | None, words: str) -> None:
    with socket.socket() as data, socket.socket() as lifeline:
        process = WorkerProcess(1, data, lifeline, -1)
        process.record_exit(status)
        assert process.describe_exit() == words
