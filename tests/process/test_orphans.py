"""Nothing outlives the front, whatever way and whenever it dies."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.process import processes

if TYPE_CHECKING:
    from pathlib import Path

# the front itself, its zygote where there is one, and what the workers of the phase are made of
PHASES = [
    ("forked", "importing", 1),
    ("forked", "launched", 1 + 3),
    ("forked", "starting", 1 + 3),
    ("forked", "serving", 1 + 3 * 2),
    ("forked", "streaming", 1 + 3 * 2),
    ("spawned", "launched", 3),
    ("spawned", "starting", 3),
    ("spawned", "serving", 3 * 2),
    ("spawned", "streaming", 3 * 2),
]


@pytest.mark.parametrize(("how", "phase", "at_least"), PHASES)
def test_nothing_outlives_a_killed_front(
    how: str, phase: str, at_least: int, mark: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tests.process.front_to_kill", how, phase, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as front:
        assert front.stdout is not None
        try:
            there, *young = front.stdout.readline().split()
            assert there == b"there"
            others = (processes.alive_with(mark) | set(map(int, young))) - {front.pid}
            assert len(others) >= at_least
        finally:
            front.kill()
    assert not processes.still_alive(others, timeout_s=5)
