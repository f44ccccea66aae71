"""The folder that keeps compiled kernels between starts: SGLang's own, for all that compile.

SGLang (0.5.23) sends the caches of Triton, FlashInfer, Inductor and the driver to SGLANG_CACHE_DIR;
what it leaves elsewhere follows here. It compiles nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLE = "SGLANG_CACHE_DIR"
#: Variable → where it points inside the folder, unless the user set it.
_WITHIN = {
    "SGLANG_JIT_CACHE_DIR": "jit",
    "TVM_FFI_CACHE_DIR": "tvm-ffi",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
}


def folder(environ: Mapping[str, str]) -> Path:
    """Return where kernels are kept: $SGLANG_CACHE_DIR, by default ~/.cache/sglang."""
    given = environ.get(VARIABLE)
    return Path(given).expanduser() if given else Path.home() / ".cache" / "sglang"


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with which every compiler keeps its kernels in `folder`."""
    kept = folder(environ)
    return {name: environ.get(name) or str(kept / place) for name, place in _WITHIN.items()}


def size(environ: Mapping[str, str]) -> tuple[int, int]:
    """Return the number of files in `folder`, and their bytes."""
    sizes = [path.stat().st_size for path in folder(environ).rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)
