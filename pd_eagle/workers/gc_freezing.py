"""Freezes the heap after the imports, so that the garbage collector does not walk it again."""

from __future__ import annotations

import ctypes
import gc


def freeze() -> None:
    """Treat every object that exists as permanent, and return freed memory to the system.

    A full collection blocks an event loop for 100 ms and more, and in a process that shares its
    pages with forked ones it copies every page that it touches: freeze before the fork.
    """
    gc.collect()
    gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc's; other C libraries have none
        trim(0)
