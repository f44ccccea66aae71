"""Blanks the machine code of other GPUs in a library, so that it compresses to a fraction.

The library keeps its size and every offset: only the bodies of fat binary entries for another
architecture become zeros, which the driver never reads on this one. PTX stays where it is of the
wanted architecture or older. Format as seen in CUDA 13 libraries: a 16-byte container header
(magic, version 1, header size, size), then entries (kind, version, header size, size, ...,
architecture at byte 28).
"""

from __future__ import annotations

import mmap
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_MAGIC = b"\x50\xed\x55\xba"
_CONTAINER = struct.Struct("<IHHQ")
_ENTRY = struct.Struct("<HHIQ")
_ARCH_AT = 28
_PTX, _ELF = 1, 2


def blank(path: Path, arch: int) -> tuple[int, int]:
    """Blank what in the library `path` is not for `arch` (90 is Hopper), in place.

    Returns how many entries were blanked and how many kept. Raises `ValueError`, with the library
    untouched so far as that container goes, where entries do not fill their container exactly.
    """
    blanked = kept = 0
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as body:
        position = body.find(_MAGIC)
        while position >= 0:
            end, entries = _entries(body, position)
            for start, length, kind, of in entries:
                if _needed(kind, of, arch):
                    kept += 1
                else:
                    body[start : start + length] = bytes(length)
                    blanked += 1
            position = body.find(_MAGIC, end)
    return blanked, kept


def _needed(kind: int, of: int, arch: int) -> bool:
    """Machine code runs on its own architecture's later minors, PTX on every later one."""
    return of <= arch if kind == _PTX else of // 10 == arch // 10 and of <= arch


def _entries(body: mmap.mmap, position: int) -> tuple[int, list[tuple[int, int, int, int]]]:
    """Return where the container ends, and (start, length, kind, architecture) of each body."""
    _, version, header, size = _CONTAINER.unpack_from(body, position)
    if version != 1 or header != _CONTAINER.size:  # the magic number in passing
        return position + len(_MAGIC), []
    found, at, end = [], position + header, position + header + size
    while at < end:
        kind, _, header, size = _ENTRY.unpack_from(body, at)
        if kind not in (_PTX, _ELF) or at + header + size > end:
            raise ValueError(f"entry of kind {kind} at {at}: wanted {_PTX} or {_ELF}, within {end}")
        (arch,) = struct.unpack_from("<I", body, at + _ARCH_AT)
        found.append((at + header, size, kind, arch))
        at += header + size
    return end, found
