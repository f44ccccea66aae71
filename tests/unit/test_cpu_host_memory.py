"""Host memory is taken as it is written."""

from __future__ import annotations

from pathlib import Path

import torch

from pd_eagle.cpu.host_memory import untouched_zeros

MIB = 2**20


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / MIB


def test_memory_is_taken_as_it_is_written() -> None:
    before = resident_mib()
    rows = untouched_zeros((256, MIB // 2), torch.bfloat16)
    assert rows.shape == (256, MIB // 2)
    assert resident_mib() - before < 8
    rows[:64] = 1
    assert 64 <= resident_mib() - before < 72
    assert rows[63].min() == 1
    assert not rows[64:80].any()
