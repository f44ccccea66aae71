"""Host memory that the kernel commits on first write; does not know what it is for."""

from __future__ import annotations

import mmap
from math import prod
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def untouched_zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return zeros whose pages are committed on first write; `torch.zeros` commits them at once."""
    size = prod(shape) * dtype.itemsize
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(*shape)
