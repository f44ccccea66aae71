"""Inventory of this machine and the plan for it: NVML, driver, links, torch."""

from __future__ import annotations

import os
import subprocess
from functools import partial
from typing import TYPE_CHECKING, Any

from pd_eagle.plan import devices
from pd_eagle.plan.config import Settings
from pd_eagle.plan.deployment import outline
from pd_eagle.plan.engine_args import installed_transfers

if TYPE_CHECKING:
    from benchmarks.gpu.host import Host
    from benchmarks.gpu.journal import Found, Journal


def run(host: Host, journal: Journal) -> None:
    journal.part("inventory", lambda: _inventory(host), gpus=0)
    journal.part("plan auto", lambda: _plan(host, "auto"), gpus=0)
    journal.part("plan on", lambda: _plan(host, "on"), gpus=2)
    journal.part("torch", _torch, gpus=0)
    if not host.dry_run:
        for words in (["nvidia-smi"], ["nvidia-smi", "topo", "-m"], ["nvidia-smi", "nvlink", "-s"]):
            journal.part(" ".join(words), partial(_said_by, words))
        journal.part("nvidia-smi -q", _driver)


def _discovered(host: Host) -> devices.Inventory:
    return devices.discover(host.device, os.environ.get("CUDA_VISIBLE_DEVICES"))


def _inventory(host: Host) -> Found:
    found = _discovered(host)
    return {
        "reason": found.reason,
        "notes": found.notes,
        "transfers": sorted(installed_transfers()),
        "devices": [
            {"name": device.name, "mib": device.total_memory_bytes >> 20, "h100": device.is_h100}
            for device in found.devices
        ],
    }


def _plan(host: Host, mode: str) -> Found:
    """Plan the default model's shape; PD is chosen automatically only on H100."""
    settings = Settings.from_kwargs(
        pd_mode=mode, device=host.device, model_path=str(host.big_model())
    )
    made = outline(settings, _discovered(host), installed_transfers())
    h100 = [device.is_h100 for device in made.inventory.devices]
    automatic = len(h100) in (2, 4, 8) and all(h100)
    wanted = "pd" if mode == "on" or automatic else "unified"
    return {
        "mode": made.plan.mode,
        "wanted": wanted,
        "right": made.plan.mode == wanted,
        "reason": made.plan.reason,
        "transfer": made.transfer,
        "transfer_reason": made.transfer_reason,
        "workers": [[w.name, w.role, w.devices, w.tp] for w in made.plan.workers],
    }


def _torch() -> Found:
    import torch

    count = torch.cuda.device_count()
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "names": [torch.cuda.get_device_name(i) for i in range(count)],
        "capability": [torch.cuda.get_device_capability(i) for i in range(count)],
        "peers": [
            [i, j, torch.cuda.can_device_access_peer(i, j)]
            for i in range(count)
            for j in range(count)
            if i != j
        ],
    }


def _said_by(words: list[str]) -> Found:
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True)
    return {"output": done.stdout.splitlines()}


_TOLD = ("Driver Version", "CUDA Version", "Product Name", "Product Architecture", "Link Width")
_TOLD_TOO = ("Persistence Mode", "Compute Mode", "MIG Mode", "Max Clocks", "Fabric", "State", "SM ")


def _driver() -> Found:
    lines: list[Any] = _said_by(["nvidia-smi", "-q"])["output"]
    return {"output": [line.strip() for line in lines if any(w in line for w in _TOLD + _TOLD_TOO)]}
