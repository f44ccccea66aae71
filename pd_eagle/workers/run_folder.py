"""What a plan's workers leave outside their memory: temporary files, and SGLang's shared memory.

All of it is removed at the end of the run; files of a killed front are removed by the next start on
the same machine. A file lock, which the kernel drops with its holder, shows whether a run's front
still lives, also across containers that share the folder. It does not know what the files are.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from pd_eagle.workers.fork_safety import private_folder, private_open

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

PREFIX = "pd_eagle-run-"
_SHARED_MEMORY = Path("/dev/shm")
# SGLang 0.5.23, srt/managers/load_snapshot.py, `shm_path_for`: this, the instance's id, a digest.
_SNAPSHOTS = "sglang_loads_"


def instance_id(worker_folder: Path) -> str:
    """Return the name under which an engine of that worker keeps its shared memory."""
    return f"{worker_folder.parent.name}_{worker_folder.name}"


class RunFolder:
    """The temporary folder of one run, for as long as this process lives or until `remove`."""

    def __init__(self) -> None:
        """Make the folder; first remove those of fronts that were killed."""
        sweep()
        self.path, self._lock = _make_locked()
        self._finalizer = weakref.finalize(self, _remove, self.path)
        private_folder(self)

    def forget(self, worker_folder: Path) -> None:
        """Remove the files of a worker that has ended."""
        _remove_shared_memory(f"{instance_id(worker_folder)}_")
        shutil.rmtree(worker_folder, ignore_errors=True)

    def remove(self) -> None:
        """Remove everything; a second call does nothing."""
        if self._finalizer.detach() is None:
            return
        _remove(self.path)
        os.close(self._lock)


def sweep() -> None:
    """Remove the folders of this user's runs whose front is dead."""
    for path in _runs():
        with contextlib.suppress(OSError), _open(path) as folder:
            if os.fstat(folder).st_uid == os.geteuid() and _locked(folder):
                logger.info("%s was left by a process that was killed: removed", path)
                _remove(path)


def _runs() -> Iterator[Path]:
    with contextlib.suppress(OSError):
        for entry in os.scandir(tempfile.gettempdir()):
            if entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[int]:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield folder
    finally:
        os.close(folder)


def _make_locked() -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
        # Before it is locked, another front's sweep may take it for a dead run's.
        with contextlib.suppress(FileNotFoundError):
            lock = private_open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                taken = _locked(lock)
            except OSError as error:  # no locks on this file system: nor for another sweep
                logger.warning("%s: %s: a killed front's files will stay", path, error)
                taken = True
            if taken and path.exists():
                return path, lock
            os.close(lock)


def _locked(folder: int) -> bool:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(path: Path) -> None:
    _remove_shared_memory(f"{path.name}_")
    shutil.rmtree(path, ignore_errors=True)


def _remove_shared_memory(beginning: str) -> None:
    for file in _SHARED_MEMORY.glob(f"{_SNAPSHOTS}{beginning}*"):
        with contextlib.suppress(OSError):
            file.unlink()
