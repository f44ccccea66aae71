"""Which process of this machine serves on a GPU, so that a second one is refused by name.

A GPU is held by a name in Linux's abstract namespace (as a bootstrap port is): it is gone with the
process, whatever way that ends, and the kernel tells who holds it. Processes in containers with
network namespaces of their own do not see each other. It knows nothing of plans or of CUDA.
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from pd_eagle.errors import StartFailed
from pd_eagle.workers.fork_safety import private_socket

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pd_eagle.plan.devices import Device

#: What this process itself serves on its GPUs, by their names; the kernel tells the rest.
_served_here: dict[str, str] = {}
#: Times that the kernel can be asked who holds a GPU: nobody accepts those connections.
_ASKED = 4096
_PEER_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: Linux, unix(7)


class GpuHolds:
    """The GPUs that one front serves on, held until `release`."""

    def __init__(self, devices: Iterable[Device], model: str) -> None:
        """Hold `devices` to serve `model`. Raises `StartFailed` that says who has one of them."""
        self._model = model
        self._sockets: dict[str, socket.socket] = {}
        taken = [refusal for device in devices if (refusal := self._take(device))]
        if taken:
            self.release()
            raise StartFailed(
                f"{'; '.join(taken)}: wanted GPUs that no other pd_eagle serves on. Stop that one "
                "(PDEngine.shutdown(), or end its process), choose other GPUs with "
                "CUDA_VISIBLE_DEVICES, or let both share them with a MEM_FRACTION_STATIC of at "
                "most 0.45 each"
            )

    def _take(self, device: Device) -> str | None:
        """Hold `device`; return who holds it if somebody else does."""
        name = f"\0pd_eagle-gpu-{device.uuid}"
        hold = private_socket(socket.AF_UNIX)
        try:
            hold.bind(name)
            hold.listen(_ASKED)  # the kernel tells whoever connects whose it is
        except OSError:
            hold.close()
            return f"GPU {device.index} ({device.name}, {device.uuid}) is held by {_holder(name)}"
        self._sockets[name], _served_here[name] = hold, self._model
        return None

    def release(self) -> None:
        for name, hold in self._sockets.items():
            hold.close()
            _served_here.pop(name, None)
        self._sockets.clear()


def _holder(name: str) -> str:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.setblocking(False)  # its queue may be full, and nobody accepts
        try:
            asking.connect(name)
            size = _PEER_CREDENTIALS.size
            found = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        except OSError:
            return "another process"
    pid = int(_PEER_CREDENTIALS.unpack(found)[0])
    if pid == os.getpid():
        return f"this process (pid {pid}), which serves {_served_here.get(name, 'on it')}"
    return f"process {pid}{_command(pid)}"


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""  # it has ended meanwhile, or is in another namespace
    command = b" ".join(words).decode(errors="replace").strip()
    return f" ({command:.120})"
