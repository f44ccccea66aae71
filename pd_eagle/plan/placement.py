"""Which devices serve which role, with which TP, and why: pure, with no look at the machine.

A plan and its reason are made together. It knows nothing of SGLang's arguments, ports or processes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pd_eagle.errors import PlanRefused
from pd_eagle.plan import splits, tuning
from pd_eagle.plan.drafts import check_draft
from pd_eagle.plan.memory import DEFAULT_MEM_FRACTION, Footprint, cpu_kv_tokens
from pd_eagle.plan.splits import DOCUMENTED, Split

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pd_eagle.messages import Role
    from pd_eagle.plan.config import Settings
    from pd_eagle.plan.devices import Inventory, Kind
    from pd_eagle.plan.shapes import ModelShape
    from pd_eagle.plan.tuning import Default, Tree


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """One engine: its name, its role, the GPUs it takes (none on a CPU) and its TP."""

    name: str
    role: Role
    devices: tuple[int, ...]
    tp: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Which workers serve which role, and the reason in one sentence."""

    mode: Literal["pd", "unified"]
    reason: str
    kind: Kind
    workers: tuple[WorkerPlan, ...]
    notes: tuple[str, ...] = ()
    #: What EAGLE drafts; None without it.
    tree: Tree | None = None
    #: What its engines are told though nobody set it.
    defaults: tuple[Default, ...] = ()

    @property
    def prefill(self) -> tuple[WorkerPlan, ...]:
        return tuple(worker for worker in self.workers if worker.role == "prefill")

    @property
    def decode(self) -> tuple[WorkerPlan, ...]:
        return tuple(worker for worker in self.workers if worker.role == "decode")

    @property
    def serving(self) -> tuple[WorkerPlan, ...]:
        """The workers whose engines make the answer: decode, or the unified one."""
        return tuple(worker for worker in self.workers if worker.role != "prefill")

    def __str__(self) -> str:
        lines = [f"{'worker':<12}{'role':<10}{'TP':>2}  devices"]
        for worker in self.workers:
            where = ", ".join(f"GPU {index}" for index in worker.devices) or "CPU"
            lines.append(f"{worker.name:<12}{worker.role:<10}{worker.tp:>2}  {where}")
        lines.append(f"{self.mode}: {self.reason}")
        if self.tree:
            lines.append(str(self.tree))
        lines += [f"default: {default}" for default in self.defaults]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def plan(
    settings: Settings,
    inventory: Inventory,
    shape: ModelShape,
    draft_shape: ModelShape | None = None,
) -> Plan:
    """Return the plan for these settings, devices and shapes.

    Raises PlanRefused with the reason, and SettingsError when the draft is another target's.
    """
    algorithm = settings.speculative_algorithm
    if algorithm and draft_shape:
        check_draft(shape, draft_shape, algorithm)
    footprint = Footprint(
        target=shape,
        draft=draft_shape if algorithm else None,
        speculative=algorithm is not None,
        mem_fraction=settings.mem_fraction_static or DEFAULT_MEM_FRACTION,
    )
    if inventory.kind == "cpu":
        found = _on_cpu(settings, inventory)
    else:
        found = _on_gpus(settings, inventory, footprint)
    return _tuned(found, settings, inventory, footprint)


def _tuned(found: Plan, settings: Settings, inventory: Inventory, footprint: Footprint) -> Plan:
    """Add what the engines are told by default."""
    tp = found.serving[0].tp
    tokens = _kv_tokens(settings, inventory, footprint, tp)
    unified = found.mode == "unified"
    notes = found.notes
    if not unified and settings.pd_mode == "auto" and len(inventory.devices) == 2:
        notes += (tuning.what_pd_gives_up(),)
    return dataclasses.replace(
        found,
        notes=notes,
        tree=tuning.tree(settings, found.kind),
        defaults=tuning.defaults(settings, found.kind, unified=unified, kv_tokens=tokens, tp=tp),
    )


def _kv_tokens(settings: Settings, inventory: Inventory, footprint: Footprint, tp: int) -> int:
    """Return how many tokens of KV one engine is expected to hold; the user's own pool counts."""
    given = settings.engine_args.get("max_total_tokens")
    if inventory.kind == "cpu":
        expected = cpu_kv_tokens(footprint.target, settings.context_length)
        return given if isinstance(given, int) else expected
    smallest = min(gpu.total_memory_bytes for gpu in inventory.devices)
    expected = footprint.kv_tokens(smallest, tp)
    return min(given, expected) if isinstance(given, int) else expected


def _on_cpu(settings: Settings, inventory: Inventory) -> Plan:
    for name in ("tp_size", "prefill_tp", "decode_tp"):
        value = getattr(settings, name)
        if value not in (None, 1):
            raise PlanRefused(f"{name.upper()}={value}: engines on the CPU have TP 1")
    where = f"on the CPU ({inventory.reason})"
    unified = settings.tp_size is not None or settings.unified_replicas is not None
    embedded = settings.model_path is None and not unified
    if settings.pd_mode == "on":
        why = "PD_MODE=on"
    elif settings.pd_mode == "auto" and embedded and settings.enable_pd_defaults:
        why = "the embedded model is there to see PD work"
    else:
        why_not = _why_unified(settings) or "automatic PD wants H100 GPUs, and there is no GPU"
        _refuse_idle_split(settings, why_not)
        replicas = settings.unified_replicas or 1
        return _unified(f"{_engines(replicas)} {where}: {why_not}", inventory, 1, replicas)
    split = Split(settings.prefill_replicas or 1, 1, settings.decode_replicas or 1, 1)
    return _pd(f"{split} {where}: {why}", inventory, split)


def _why_unified(settings: Settings) -> str | None:
    """Return the setting that rules PD out, whatever the devices are."""
    if settings.unified_replicas is not None:
        count = settings.unified_replicas
        return f"UNIFIED_REPLICAS={count} asks for unified engines" + (
            f", TP_SIZE={settings.tp_size}" if settings.tp_size is not None else ""
        )
    if settings.tp_size is not None:
        return f"TP_SIZE={settings.tp_size} asks for one unified engine"
    if settings.pd_mode == "off":
        return "PD_MODE=off"
    if settings.pd_mode == "auto" and not settings.enable_pd_defaults:
        return "ENABLE_PD_DEFAULTS=false"
    return None


def _refuse_idle_split(settings: Settings, why_not: str) -> None:
    if settings.split_by_hand:
        raise PlanRefused(
            f"{' and '.join(settings.split_by_hand)} would have no effect: no PD here, since"
            f" {why_not}; set PD_MODE=on or unset it"
        )


def _on_gpus(settings: Settings, inventory: Inventory, footprint: Footprint) -> Plan:
    why_not = _why_unified(settings) or _why_not_automatic(settings, inventory)
    if why_not:
        _refuse_idle_split(settings, why_not)
        return _engines_alike(settings, why_not, inventory, footprint)
    why = "PD_MODE=on"
    if settings.pd_mode == "auto":
        why = f"all {len(inventory.devices)} visible GPUs are H100"
    if settings.split_by_hand:
        return _by_hand(settings, why, inventory, footprint)
    try:
        return _automatic(why, inventory, footprint)
    except PlanRefused as refusal:
        if settings.pd_mode == "on":
            raise
        return _engines_alike(settings, f"{why}, but {refusal}", inventory, footprint)


def _why_not_automatic(settings: Settings, inventory: Inventory) -> str | None:
    if settings.pd_mode == "on":
        return None
    if len(inventory.devices) in DOCUMENTED and all(gpu.is_h100 for gpu in inventory.devices):
        return None
    return f"automatic PD wants 2, 4 or 8 GPUs, all H100; here: {inventory}"


def _engines_alike(
    settings: Settings, why: str, inventory: Inventory, footprint: Footprint
) -> Plan:
    """Return a plan of unified engines: one, unless UNIFIED_REPLICAS says more."""
    gpus, tp, replicas = len(inventory.devices), settings.tp_size, settings.unified_replicas
    if tp is None:
        tp = splits.smallest_tp(range(1, gpus + 1), inventory, footprint)
        why = f"{why}; TP {tp} is the smallest that fits"
    elif tp > gpus:
        raise PlanRefused(f"TP_SIZE={tp}: wanted at most {gpus}, the visible GPUs")
    elif obstacle := splits.obstacle(tp, inventory, footprint):
        raise PlanRefused(f"TP_SIZE={tp}: {obstacle}")
    if replicas is not None and replicas * tp > gpus:
        raise PlanRefused(
            f"UNIFIED_REPLICAS={replicas}: {replicas} × TP{tp} takes {replicas * tp} GPUs, and"
            f" {gpus} are visible: wanted at most {gpus // tp}"
        )
    count = replicas or 1
    idle = _unused(gpus - count * tp) + _how_to_use_all(settings, count, tp, inventory, footprint)
    return _unified(f"{_engines(count)}: {why}{idle}", inventory, tp, count)


def _engines(count: int) -> str:
    return "one engine" if count == 1 else f"{count} engines"


def _how_to_use_all(
    settings: Settings, count: int, tp: int, inventory: Inventory, footprint: Footprint
) -> str:
    """Name the settings with which GPUs that stay unused would serve too."""
    gpus = len(inventory.devices)
    if gpus // tp <= count:
        return ""
    ways = [f"UNIFIED_REPLICAS={gpus // tp} serves on {gpus // tp * tp}"]
    if settings.tp_size is None:
        try:
            split = _automatic("", inventory, footprint)
        except PlanRefused:
            pass
        else:
            unset = " without UNIFIED_REPLICAS" if settings.unified_replicas else ""
            ways.append(f"PD_MODE=on{unset} on {sum(worker.tp for worker in split.workers)}")
    return f" ({', '.join(ways)})"


def _automatic(why: str, inventory: Inventory, footprint: Footprint) -> Plan:
    gpus = len(inventory.devices)
    if gpus < 2:
        raise PlanRefused(
            "PD needs two GPUs, one for each role, and 1 is visible: wanted PD_MODE=off, or"
            " PD_DEVICE=cpu to see PD work without"
        )
    documented = DOCUMENTED.get(gpus)
    problem = splits.split_obstacle(documented, inventory, footprint) if documented else None
    if documented and not problem:
        reason = f"{documented}, the documented split: {why}"
        return _pd(reason, inventory, documented, footprint)
    split = splits.equal_split(
        gpus, splits.smallest_tp(range(1, gpus // 2 + 1), inventory, footprint)
    )
    instead = ""
    if documented:
        instead = f"; the documented split ({documented}) cannot start: {problem}"
    reason = f"{split}: {why}{instead}{_unused(gpus - split.gpus)}"
    return _pd(reason, inventory, split, footprint)


def _by_hand(settings: Settings, why: str, inventory: Inventory, footprint: Footprint) -> Plan:
    gpus = len(inventory.devices)
    split = splits.completed(settings, gpus, inventory, footprint)
    names = " and ".join(settings.split_by_hand)
    if split.gpus > gpus or not split.decode_replicas:
        wanted = max(split.gpus, split.prefill_replicas * split.prefill_tp + split.decode_tp)
        raise PlanRefused(f"{names}: {split} takes {wanted} GPUs, and {gpus} are visible")
    if problem := splits.split_obstacle(split, inventory, footprint):
        raise PlanRefused(f"{names}: {split} cannot start: {problem}")
    reason = f"{split}, by hand ({names}): {why}{_unused(gpus - split.gpus)}"
    return _pd(reason, inventory, split, footprint)


def _unused(gpus: int) -> str:
    if not gpus:
        return ""
    return f"; {gpus} GPU{' stays' if gpus == 1 else 's stay'} unused"


def _unified(reason: str, inventory: Inventory, tp: int, replicas: int = 1) -> Plan:
    on_gpus = inventory.kind == "cuda"
    workers = tuple(
        WorkerPlan(
            f"unified-{number}",
            "unified",
            tuple(range(number * tp, (number + 1) * tp)) if on_gpus else (),
            tp,
        )
        for number in range(replicas)
    )
    return Plan("unified", reason, inventory.kind, workers, inventory.notes)


def _pd(
    reason: str, inventory: Inventory, split: Split, footprint: Footprint | None = None
) -> Plan:
    notes = inventory.notes
    if split.prefill_tp != split.decode_tp and footprint and not footprint.target.is_mla:
        notes += (_SLICED,)
    return Plan("pd", reason, inventory.kind, tuple(_workers(inventory.kind, split)), notes)


# SGLang 0.5.23 logs "Performance is NOT guaranteed" for this; its issue #15674 is about the crash.
_SLICED = (
    "unequal TPs make SGLang slice every KV head group on its way; crashes under load were reported"
)


def _workers(kind: Kind, split: Split) -> Iterator[WorkerPlan]:
    first_gpu = 0
    roles: tuple[tuple[Role, int, int], ...] = (
        ("prefill", split.prefill_replicas, split.prefill_tp),
        ("decode", split.decode_replicas, split.decode_tp),
    )
    for role, replicas, tp in roles:
        for number in range(replicas):
            devices = tuple(range(first_gpu, first_gpu + tp)) if kind == "cuda" else ()
            yield WorkerPlan(f"{role}-{number}", role, devices, tp)
            first_gpu += tp
