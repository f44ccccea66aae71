"""Devices: what NVML says, what CUDA_VISIBLE_DEVICES makes of it, and --gpus."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from pd_eagle.errors import PlanRefused, SettingsError
from pd_eagle.plan import devices, nvml
from pd_eagle.plan.devices import Device, Inventory, discover, parse_gpus

if TYPE_CHECKING:
    from collections.abc import Callable

GIB = 2**30


class Failure(Exception):
    """What the scripted NVML raises."""


@dataclass(frozen=True)
class Card:
    name: str = "NVIDIA H100 80GB HBM3"
    uuid: str = "GPU-0"
    memory_bytes: int = 80 * GIB
    mig: bool | None = False  # None: the card has no MIG
    capability: tuple[int, int] = (9, 0)


class ScriptedNvml:
    """pynvml as far as it is used, over the given cards."""

    NVMLError = Failure

    def __init__(self, *cards: Card, init: str = "", count: str = "") -> None:
        self._cards, self._init, self._count = cards, init, count
        self.open = 0

    def nvmlInit(self) -> None:
        if self._init:
            raise Failure(self._init)
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        if self._count:
            raise Failure(self._count)
        return len(self._cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:
        return self._cards[index]

    def nvmlDeviceGetName(self, handle: Card) -> bytes:
        return handle.name.encode()  # old releases of pynvml return bytes

    def nvmlDeviceGetUUID(self, handle: Card) -> str:
        return handle.uuid

    def nvmlDeviceGetMemoryInfo(self, handle: Card) -> Any:
        return SimpleNamespace(total=handle.memory_bytes)

    def nvmlDeviceGetMigMode(self, handle: Card) -> list[int]:
        if handle.mig is None:
            raise Failure("Not Supported")
        return [int(handle.mig), 0]

    def nvmlDeviceGetCudaComputeCapability(self, handle: Card) -> list[int]:
        return list(handle.capability)


def host(*uuids: str, name: str = "NVIDIA H100 80GB HBM3") -> ScriptedNvml:
    return ScriptedNvml(*(Card(name, uuid) for uuid in uuids))


FOUR = ("GPU-aa11", "GPU-aa22", "GPU-bb33", "GPU-cc44")


def uuids(inventory: Inventory) -> list[str]:
    return [device.uuid for device in inventory.devices]


def test_all_gpus_are_numbered_from_zero() -> None:
    cards = ScriptedNvml(Card(uuid="GPU-a", mig=None), Card(uuid="GPU-b"))
    found = discover("auto", None, cards)
    assert found == Inventory(
        "cuda",
        (
            Device(0, "NVIDIA H100 80GB HBM3", "GPU-a", 80 * GIB, (9, 0)),
            Device(1, "NVIDIA H100 80GB HBM3", "GPU-b", 80 * GIB, (9, 0)),
        ),
        "2 GPUs by NVML",
    )
    assert cards.open == 0


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, list(FOUR)),
        ("0,1,2,3", list(FOUR)),
        ("2", ["GPU-bb33"]),
        ("3,0", ["GPU-cc44", "GPU-aa11"]),
        (" 1 , 2 ", ["GPU-aa22", "GPU-bb33"]),
        ("GPU-cc44,GPU-aa11", ["GPU-cc44", "GPU-aa11"]),
        ("GPU-b", ["GPU-bb33"]),
        ("GPU-aa2,0", ["GPU-aa22", "GPU-aa11"]),
        # CUDA stops at the first that it does not know.
        ("0,1,-1,2", ["GPU-aa11", "GPU-aa22"]),
        ("1,7,2", ["GPU-aa22"]),
        ("0,GPU-aa,1", ["GPU-aa11"]),
        ("0,GPU-dd,1", ["GPU-aa11"]),
        ("1,x", ["GPU-aa22"]),
        ("2,,1", ["GPU-bb33"]),
    ],
)
def test_visible_devices_as_cuda_reads_them(visible: str | None, expected: list[str]) -> None:
    found = discover("auto", visible, host(*FOUR))
    assert uuids(found) == expected
    assert [device.index for device in found.devices] == list(range(len(expected)))


def test_hidden_gpus_are_mentioned() -> None:
    assert (
        discover("auto", "2", host(*FOUR)).reason
        == "1 GPU by NVML, 3 more hidden by CUDA_VISIBLE_DEVICES"
    )


@pytest.mark.parametrize("visible", ["", "-1", "9", "NoDevFiles", "GPU-aa", "gpu-aa11"])
def test_hiding_every_gpu_leaves_the_cpu(visible: str) -> None:
    found = discover("auto", visible, host(*FOUR))
    assert found == Inventory("cpu", (), f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU")


@pytest.mark.parametrize(
    ("nvml", "reason"),
    [
        (
            ScriptedNvml(init="NVML Shared Library Not Found"),
            "no NVIDIA driver answers (NVML: NVML Shared Library Not Found)",
        ),
        (
            ScriptedNvml(init="Driver Not Loaded"),
            "no NVIDIA driver answers (NVML: Driver Not Loaded)",
        ),
        (ScriptedNvml(count="GPU is lost"), "the NVIDIA driver fails (NVML: GPU is lost)"),
        (ScriptedNvml(), "NVML finds no GPU"),
    ],
)
def test_no_gpu_is_the_cpu_or_a_refusal(nvml: ScriptedNvml, reason: str) -> None:
    assert discover("auto", None, nvml) == Inventory("cpu", (), reason)
    with pytest.raises(PlanRefused) as caught:
        discover("cuda", None, nvml)
    assert caught.value.message == (
        f"PD_DEVICE='cuda': {reason}; wanted a visible NVIDIA GPU, or PD_DEVICE=cpu"
    )
    assert nvml.open == 0


def test_without_a_driver_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_NVML_LIBRARY", "libnobody-has-this.so.1")
    monkeypatch.setattr(subprocess, "run", None)
    reason = "no NVIDIA driver is installed (libnobody-has-this.so.1 cannot be loaded)"
    assert discover("auto", None) == Inventory("cpu", (), reason)


#: Stands in for nvml.py: what the process that asks NVML prints, and how it ends.
PRINTS_TWO = """
import os, sys
sys.path.insert(0, {root!r})
from pd_eagle.plan.nvml import PhysicalGpu, dump
assert os.getpid() != {pid}
ours = PhysicalGpu("H100", "GPU-a", 80, False, (9, 0))
print(dump([ours, PhysicalGpu("T4", "GPU-b", 16, False, (7, 5))]))
"""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Inventory]:
    """Return what `discover` makes of a process that runs the given code instead of nvml.py."""

    def ask(code: str) -> Inventory:
        script = tmp_path / "nvml.py"
        script.write_text(code)
        monkeypatch.setattr(devices, "_NVML_LIBRARY", "libc.so.6")
        monkeypatch.setattr(nvml, "__file__", str(script))
        return discover("auto", None)

    return ask


def test_nvml_is_asked_in_another_process(asked: Callable[[str], Inventory]) -> None:
    root = str(Path(devices.__file__).parent.parent)
    here = "pynvml" in sys.modules  # of another test, or torch's
    found = asked(PRINTS_TWO.format(root=root, pid=os.getpid()))
    assert found.devices == (
        Device(0, "H100", "GPU-a", 80, (9, 0)),
        Device(1, "T4", "GPU-b", 16, (7, 5)),
    )
    assert ("pynvml" in sys.modules) is here


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise OSError('no room')", "NVML cannot be asked: OSError: no room"),
        ("import os; os._exit(9)", "NVML cannot be asked: exit code 9"),
        ("import time; time.sleep(60)", "the NVIDIA driver does not answer NVML within 0.5 s"),
    ],
)
def test_a_process_that_fails_to_ask_nvml_says_why(
    asked: Callable[[str], Inventory], monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    if "sleep" in code:
        monkeypatch.setattr(devices, "_NVML_TIMEOUT_S", 0.5)
    assert asked(code).reason == reason


def test_the_process_that_asks_prints_what_can_be_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", host("GPU-a"))
    nvml.main()
    (gpu,) = list(nvml.load(capsys.readouterr().out))
    assert gpu == nvml.PhysicalGpu("NVIDIA H100 80GB HBM3", "GPU-a", 80 * GIB, False, (9, 0))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    nvml.main()
    assert nvml.load(capsys.readouterr().out) == "nvidia-ml-py is not installed"


def test_the_cpu_when_asked_for_looks_at_no_gpu() -> None:
    nvml = ScriptedNvml(init="must not be asked")
    assert discover("cpu", None, nvml) == Inventory("cpu", (), "PD_DEVICE=cpu")


def test_a_gpu_split_by_mig_is_refused_unless_hidden() -> None:
    nvml = ScriptedNvml(Card(uuid="GPU-a"), Card(uuid="GPU-b", mig=True))
    with pytest.raises(PlanRefused, match=r"\(GPU-b\) is split by MIG.*nvidia-smi -mig 0"):
        discover("auto", None, nvml)
    assert uuids(discover("auto", "0", nvml)) == ["GPU-a"]


def test_a_mig_slice_by_name_is_refused() -> None:
    with pytest.raises(PlanRefused, match=r"CUDA_VISIBLE_DEVICES='MIG-1f' names the MIG slice"):
        discover("auto", "MIG-1f", host("GPU-a"))


def test_a_gpu_named_twice_is_refused() -> None:
    with pytest.raises(PlanRefused, match=r"CUDA_VISIBLE_DEVICES='0,GPU-a' names GPU-a twice"):
        discover("auto", "0,GPU-a", host("GPU-a", "GPU-b"))


@pytest.mark.parametrize(
    ("name", "h100"),
    [
        ("NVIDIA H100 80GB HBM3", True),
        ("NVIDIA H100 PCIe", True),
        ("NVIDIA H100 NVL", True),
        ("NVIDIA H200", False),
        ("NVIDIA GH200 480GB", False),
        ("NVIDIA A100-SXM4-80GB", False),
        ("NVIDIA H1000", False),
    ],
)
def test_an_h100_is_known_by_its_name(name: str, h100: bool) -> None:
    assert Device(0, name, "GPU-0", 80 * GIB).is_h100 is h100


def test_gpus_that_differ_are_noted_and_counted() -> None:
    found = discover("auto", None, ScriptedNvml(Card("A", "GPU-a"), Card("B", "GPU-b")))
    assert str(found) == "1 × A, 1 × B"
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in found.notes[0]
    assert discover("auto", None, host("GPU-a", "GPU-b")).notes == ()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("8xH100", "8 × NVIDIA H100"),
        ("8Xh100", "8 × NVIDIA H100"),
        ("2xH100, 2xA100", "2 × NVIDIA H100, 2 × NVIDIA A100"),
        ("H200", "1 × NVIDIA H200"),
        ("1xA100-40GB", "1 × NVIDIA A100 40GB"),
        ("cpu", "the CPU"),
        ("0", "the CPU"),
    ],
)
def test_gpus_by_description(text: str, shown: str) -> None:
    found = parse_gpus(text)
    assert str(found) == shown
    assert [device.index for device in found.devices] == list(range(len(found.devices)))
    assert len({device.uuid for device in found.devices}) == len(found.devices)


def test_described_gpus_have_the_memory_that_such_cards_show() -> None:
    (h100,) = parse_gpus("H100").devices
    (h200,) = parse_gpus("H200").devices
    assert (h100.total_memory_bytes, h200.total_memory_bytes) == (81559 << 20, 143771 << 20)
    assert h100.is_h100
    assert not h200.is_h100


@pytest.mark.parametrize("text", ["", "8", "8xQ100", "0xH100", "xH100", "8xH100,", "-1xH100"])
def test_a_description_of_no_gpu_is_an_error(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_gpus(text)
    assert caught.value.message.startswith(f"--gpus {text!r}: wanted e.g. 8xH100, with one of B300")
