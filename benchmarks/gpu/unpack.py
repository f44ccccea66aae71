"""Stores copied loads on this machine and unpacks them when all are there; standard library only.

    python3 benchmarks/gpu/unpack.py .cache/gpu/load-3     # keep one; says which are missing
    python3 benchmarks/gpu/unpack.py --unpack              # then check all sums and unpack

Every load contains the manifest. Keeping a load again is harmless. Unpack only when none is
missing: libraries that are not there yet are taken from the machine's own torch.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import lzma
import os
import shutil
import sys
import sysconfig
import tarfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import IO, Any, cast

MANIFEST = "manifest.json"
#: Folders in the site: packed system libraries, and links to those that this machine lacks.
LIBRARIES, LENT = "system-libraries", "lent-libraries"
KEPT = Path("/var/tmp/gpu-kit")
#: CUDA's libraries are those of the machine's own torch, in this folder beside it.
_MACHINES_OWN = "nvidia"

#: Python reads .pth files, which some packages need, only in site directories.
_SITE = "import os, site\n\nsite.addsitedir(os.path.dirname(os.path.abspath(__file__)))\n"


def keep(load: Path, kept: Path) -> list[str]:
    """Copy the pieces of one `load`; return the loads that are still missing."""
    kept.mkdir(parents=True, exist_ok=True)
    manifest = json.loads((load / MANIFEST).read_text())
    old = kept / MANIFEST
    if old.exists() and json.loads(old.read_text()) != manifest:
        raise SystemExit(f"{load} is of another packing than {kept}: remove {kept} first")
    shutil.copy(load / MANIFEST, old)
    for piece in manifest["loads"][load.name]:
        shutil.copy(load / piece["file"], kept / (piece["file"] + ".new"))
        _check(kept / (piece["file"] + ".new"), piece["sha256"])
        (kept / (piece["file"] + ".new")).replace(kept / piece["file"])
    return missing(kept)


def missing(kept: Path) -> list[str]:
    """Return the loads with a missing piece."""
    loads = json.loads((kept / MANIFEST).read_text())["loads"]
    return [
        n for n, pieces in loads.items() if not all((kept / p["file"]).exists() for p in pieces)
    ]


def _check(path: Path, wanted: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wanted:
        raise SystemExit(f"{path.name}: sha256 {found}, wanted {wanted}: carry its load again")


def unpack(kept: Path, site: Path) -> list[str]:
    """Unpack every complete group; return the groups that this call unpacked."""
    manifest = json.loads((kept / MANIFEST).read_text())
    site.mkdir(parents=True, exist_ok=True)
    wanted = [g for g in manifest["groups"] if not (site / f".{g}.done").exists()]
    whole = [g for g in wanted if all((kept / p["file"]).exists() for p in _pieces(manifest, g))]
    with ProcessPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        done = list(pool.map(_unpack_group, [(kept, site, g, _pieces(manifest, g)) for g in whole]))
    borrow(site)
    lend(site)
    (site / "sitecustomize.py").write_text(_SITE)
    return done


def _pieces(manifest: dict[str, Any], group: str) -> list[dict[str, Any]]:
    found = [p for pieces in manifest["loads"].values() for p in pieces if p["group"] == group]
    return sorted(found, key=lambda piece: int(piece["number"]))


def _unpack_group(job: tuple[Path, Path, str, list[dict[str, Any]]]) -> str:
    kept, site, group, pieces = job
    for piece in pieces:
        _check(kept / piece["file"], piece["sha256"])
    with (
        _Joined([kept / piece["file"] for piece in pieces]) as raw,
        lzma.open(cast("IO[bytes]", raw)) as stream,
        tarfile.open(fileobj=stream, mode="r|") as archive,
    ):
        # As an attribute, not an argument: Python before 3.11.4 (Debian 12 has 3.11.2) ignores it.
        archive.extraction_filter = getattr(tarfile, "tar_filter", None)
        archive.extractall(site)
    (site / f".{group}.done").touch()
    return group


class _Joined:
    """Files read as one stream."""

    def __init__(self, paths: list[Path]) -> None:
        self._left = list(paths)
        self._file: IO[bytes] | None = None

    def __enter__(self) -> _Joined:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()

    def read(self, size: int = -1) -> bytes:
        while True:
            if self._file is None:
                if not self._left:
                    return b""
                self._file = self._left.pop(0).open("rb")
            if found := self._file.read(size):
                return found
            self._file.close()
            self._file = None


def borrow(site: Path) -> None:
    """Link the CUDA libraries of the machine's own torch to where the packed torch looks."""
    own = Path(sysconfig.get_path("purelib")) / _MACHINES_OWN
    if not own.is_dir():
        return
    (site / _MACHINES_OWN).mkdir(exist_ok=True)
    for folder in own.iterdir():
        link = site / _MACHINES_OWN / folder.name
        if not link.exists():
            link.symlink_to(folder)


def lend(site: Path) -> list[str]:
    """Link the packed system libraries that this machine lacks; return their names."""
    lacking = [path for path in sorted((site / LIBRARIES).glob("*")) if not _is_here(path.name)]
    (site / LENT).mkdir(exist_ok=True)
    for path in lacking:
        link = site / LENT / path.name
        link.unlink(missing_ok=True)
        link.symlink_to(path)
    return [path.name for path in lacking]


def _is_here(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("load", type=Path, nargs="*")
    parser.add_argument(
        "--kept", type=Path, default=KEPT, help="where loads are kept between calls"
    )
    parser.add_argument("--unpack", action="store_true")
    arguments = parser.parse_args()
    left: list[str] = []
    for load in arguments.load:
        left = keep(load, arguments.kept)
    if arguments.unpack:
        left = missing(arguments.kept)
        print("unpacked:", *unpack(arguments.kept, arguments.kept / "site"))
        site = arguments.kept / "site"
        print(f"export PYTHONPATH={site}:$PWD LD_LIBRARY_PATH={site / LENT}:$LD_LIBRARY_PATH")
    print("missing:", ", ".join(left) or "nothing")
    return 0


if __name__ == "__main__":
    sys.exit(main())
