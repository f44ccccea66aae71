"""Builds a folder once, whoever asks and however often it was interrupted; does not know what is
in it.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pd_eagle.errors import StartFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MANIFEST = "manifest.json"


def build_once(folder: Path, build: Callable[[Path], None], log: Callable[[str], None]) -> Path:
    """Return `folder`, filled by `build(empty folder)` unless it is there and complete.

    Others that want the same folder wait. It appears under its name only when it is complete, by
    one rename. Raises `StartFailed` when the place cannot be written.
    """
    if is_complete(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_name(f"{folder.name}.lock"), log):
            if not is_complete(folder):
                _build(folder, build)
    except OSError as error:
        raise StartFailed(
            f"cannot write {folder}: {error}; set XDG_CACHE_HOME to a folder with room"
        ) from error
    return folder


def is_complete(folder: Path) -> bool:
    """Say whether every file of the folder's manifest is there in its full size."""
    try:
        sizes = json.loads((folder / MANIFEST).read_bytes())
        return bool(sizes) and all((folder / n).stat().st_size == s for n, s in sizes.items())
    except (OSError, ValueError):
        return False


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    partial = f"{folder.name}.partial-"
    for left in folder.parent.glob(f"{partial}*"):  # by a process that was killed here
        shutil.rmtree(left)
    growing = folder.parent / tempfile.mkdtemp(prefix=partial, dir=folder.parent)
    try:
        build(growing)
        _write_manifest(growing)
        if folder.exists():
            folder.rename(growing.with_name(f"{growing.name}-old"))
        growing.rename(folder)
    finally:
        for left in folder.parent.glob(f"{partial}*"):
            shutil.rmtree(left)


def _write_manifest(folder: Path) -> None:
    sizes = {p.name: p.stat().st_size for p in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps(sizes, indent=1))
    folder.chmod(0o755)  # mkdtemp made it private


@contextmanager
def _lock(path: Path, log: Callable[[str], None]) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"waiting for another process that is building {path.with_suffix('').name}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
