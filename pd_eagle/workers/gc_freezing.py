"""Makes a heap ready for what comes after the imports; does not know in which process."""

from __future__ import annotations

import ctypes
import gc


def settle() -> None:
    """Take everything that exists for permanent, and give back what making it took.

    The collector will not walk it any more: a full walk holds a loop for a tenth of a second and
    more, and in a process that shares its pages with forked ones it copies every page that it
    touches. So this comes before a fork, not after it.
    """
    gc.collect()
    gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc's; other C libraries have none
        trim(0)
