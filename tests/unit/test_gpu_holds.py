"""Who holds a GPU: told by name, released by any end."""

from __future__ import annotations

import subprocess
import sys
import uuid
from typing import TYPE_CHECKING

import pytest

from pd_eagle.errors import StartFailed
from pd_eagle.gpu_holds import GpuHolds
from pd_eagle.plan.devices import Device

if TYPE_CHECKING:
    from collections.abc import Iterator

_HOLDER = """
import sys
from pd_eagle.plan.devices import Device
from pd_eagle.gpu_holds import GpuHolds
holds = GpuHolds([Device(0, "NVIDIA H100", sys.argv[1], 80)], "a model")
print("there", flush=True)
sys.stdin.read()
"""


def gpus(count: int = 1) -> list[Device]:
    return [Device(i, "NVIDIA H100", f"GPU-test-{uuid.uuid4()}", 80) for i in range(count)]


def test_a_second_of_this_process_is_told_what_the_first_serves() -> None:
    devices = gpus(2)
    first = GpuHolds(devices[1:], "org/model")
    with pytest.raises(StartFailed, match=r"GPU 1 .* held by this process .* serves org/model:"):
        GpuHolds(devices, "other")
    first.release()
    second = GpuHolds(devices, "other")  # what the refused one had taken was given back
    second.release()


@pytest.fixture
def held_elsewhere() -> Iterator[tuple[Device, subprocess.Popen[str]]]:
    (device,) = gpus()
    command = [sys.executable, "-c", _HOLDER, device.uuid]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "there\n"
        yield device, holder
        holder.kill()


def test_another_process_is_named_and_its_death_frees_the_gpu(
    held_elsewhere: tuple[Device, subprocess.Popen[str]],
) -> None:
    device, holder = held_elsewhere
    for _ in range(5):
        with pytest.raises(StartFailed, match=rf"is held by process {holder.pid} \(.*python"):
            GpuHolds([device], "other")
    holder.kill()
    holder.wait()
    GpuHolds([device], "other").release()
