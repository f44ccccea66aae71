"""Zeroes the machine code of other GPUs in a library, so that it compresses to a fraction.

The library keeps its size and every fat binary container its offset: a container's entries for the
given architecture move to its start, its size is set to theirs, and zeros follow. PTX of that
architecture or an older one stays. Format as found in CUDA 13's libraries: a 16-byte
container header (magic, version 1, header size, size), then entries (kind, version, header size,
size, ..., architecture at byte 28).
"""

from __future__ import annotations

import mmap
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

_MAGIC = b"\x50\xed\x55\xba"
_CONTAINER = struct.Struct("<IHHQ")
_ENTRY = struct.Struct("<HHIQ")
_ARCH_AT = 28
_PTX, _ELF = 1, 2


class _Entry(NamedTuple):
    """One entry of a container, its header included."""

    start: int
    length: int
    kind: int
    arch: int


def blank(path: Path, arch: int) -> tuple[int, int]:
    """Zero everything in the library `path` that is not for `arch` (90 is Hopper), in place.

    Returns the numbers of dropped and of kept entries. Raises `ValueError`, with that container
    unchanged, where entries do not fill their container exactly.
    """
    dropped = kept = 0
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as body:
        position = body.find(_MAGIC)
        while position >= 0:
            end, entries = _entries(body, position)
            needed = [entry for entry in entries if _needed(entry, arch)]
            if entries:
                # A container without code for `arch` keeps its smallest entry: never empty.
                _rewrite(body, position, end, needed or [min(entries, key=lambda e: e.length)])
            kept += len(needed)
            dropped += len(entries) - len(needed)
            position = body.find(_MAGIC, end)
    return dropped, kept


def _rewrite(body: mmap.mmap, position: int, end: int, entries: list[_Entry]) -> None:
    """Move `entries` to the container's start, set its size to theirs, and zero the rest."""
    magic, version, header, _ = _CONTAINER.unpack_from(body, position)
    whole = b"".join(body[entry.start : entry.start + entry.length] for entry in entries)
    _CONTAINER.pack_into(body, position, magic, version, header, len(whole))
    body[position + header : end] = whole.ljust(end - position - header, b"\0")


def _needed(entry: _Entry, arch: int) -> bool:
    """Machine code runs on later minor versions of its architecture, PTX on all later ones."""
    if entry.kind == _PTX:
        return entry.arch <= arch
    return entry.arch // 10 == arch // 10 and entry.arch <= arch


def _entries(body: mmap.mmap, position: int) -> tuple[int, list[_Entry]]:
    """Return where the container ends, and what is in it."""
    _, version, header, size = _CONTAINER.unpack_from(body, position)
    if version != 1 or header != _CONTAINER.size:  # these bytes occurred by chance
        return position + len(_MAGIC), []
    found, at, end = [], position + header, position + header + size
    while at < end:
        kind, _, header, size = _ENTRY.unpack_from(body, at)
        if kind not in (_PTX, _ELF) or at + header + size > end:
            raise ValueError(f"entry of kind {kind} at {at}: wanted {_PTX} or {_ELF}, within {end}")
        (arch,) = struct.unpack_from("<I", body, at + _ARCH_AT)
        found.append(_Entry(at, header + size, kind, arch))
        at += header + size
    return end, found
