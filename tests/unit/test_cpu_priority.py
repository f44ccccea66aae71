"""An engine's priority is a wish: what the kernel answers to it must not end the engine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pd_eagle.cpu import priority

NOBODY = 65534
# Three engines at once. Everything is imported first: an ordinary user may not be able to read this
# checkout. What sheds its privileges is not dumpable, so it may not write its own files in /proc.
_AS_NOBODY = f"""
import ctypes, os
from pd_eagle.cpu import priority
for _ in range(3):
    if os.fork() == 0:
        os.setuid({NOBODY})
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
        for _ in range(3):
            priority._set_session_niceness()
        os._exit(0)
print([os.wait()[1] for _ in range(3)])
"""


class Autogroup:
    """The kernel's file: answers `errors` first, then takes what is written."""

    def __init__(self, *errors: OSError) -> None:
        self.errors = list(errors)
        self.written: list[str] = []

    def write_text(self, text: str) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.written.append(text)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    naps: list[float] = []
    monkeypatch.setattr("time.sleep", naps.append)
    return naps


def test_it_is_asked_again_later_when_others_asked_just_before(
    monkeypatch: pytest.MonkeyPatch, slept: list[float]
) -> None:
    file = Autogroup(BlockingIOError(), BlockingIOError())
    monkeypatch.setattr(priority, "_SESSION_NICENESS", file)
    priority._set_session_niceness()
    assert file.written == [str(priority.ENGINE_NICENESS)]
    assert len(slept) == 2
    assert min(slept) >= 0.1  # what the kernel wants between two writes


@pytest.mark.parametrize("error", [PermissionError(), FileNotFoundError(), OSError(22, "invalid")])
def test_what_cannot_be_is_left(
    monkeypatch: pytest.MonkeyPatch, slept: list[float], error: OSError
) -> None:
    file = Autogroup(error)
    monkeypatch.setattr(priority, "_SESSION_NICENESS", file)
    priority._set_session_niceness()
    assert (file.written, slept) == ([], [])


def test_it_is_not_asked_for_ever(
    monkeypatch: pytest.MonkeyPatch, slept: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(priority, "_SESSION_NICENESS", Autogroup(*[BlockingIOError()] * 1000))
    priority._set_session_niceness()
    assert len(slept) == priority._SESSION_NICENESS_TRIES
    assert "keeps its priority" in caplog.text


@pytest.mark.skipif(os.getuid() != 0, reason="an ordinary user runs the engines' tests as one")
def test_an_ordinary_users_engines_start_together() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _AS_NOBODY], capture_output=True, text=True, start_new_session=True
    )
    assert ran.stdout.strip() == "[0, 0, 0]", ran.stderr
