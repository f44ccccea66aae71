"""From settings to all that is needed to start: devices, model, plan, transfer, engine arguments.

Nothing is started here and nothing needs SGLang; what cannot work is refused here, with its reason.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pd_eagle import cpu, demo
from pd_eagle.errors import PlanRefused
from pd_eagle.plan import (
    cpu_families,
    cuda_answers,
    devices,
    drafts,
    engine_args,
    graph_sizes,
    kernel_cache,
    models,
    placement,
)
from pd_eagle.plan.known_models import DEFAULT, EMBEDDED

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from pd_eagle.plan.config import Settings
    from pd_eagle.plan.devices import Inventory
    from pd_eagle.plan.models import Description, ModelShape
    from pd_eagle.plan.placement import Plan, WorkerPlan

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Outline:
    """What would run where, and from what: enough for `pd-eagle plan`, nothing made on disk."""

    settings: Settings
    inventory: Inventory
    model: str
    shape: ModelShape
    draft: str | None
    plan: Plan
    transfer: str | None
    transfer_reason: str | None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    architectures: tuple[str, ...] = ()


def outline(settings: Settings, inventory: Inventory, transfers: Collection[str]) -> Outline:
    """Return what `settings` ask for on `inventory`, with `transfers` installed.

    Raises `SettingsError` or `PlanRefused`.
    """
    engine_args.check(settings)
    model = models.model_of(settings, inventory.kind)
    target = models.describe(model)
    draft = drafts.draft_path(settings, model)
    drafting = models.describe(draft, _DRAFT) if draft else None
    notes = _check_on_cpu(settings, target, drafting) if inventory.kind == "cpu" else ()
    shape = target.shape
    if settings.speculative_token_map:
        drafts.check_token_map(settings.speculative_token_map, shape.vocab_size)
    plan = placement.plan(settings, inventory, shape, drafting.shape if drafting else None)
    plan = dataclasses.replace(plan, notes=(*plan.notes, *notes))
    transfer, reason = None, None
    if plan.mode == "pd":
        transfer, reason = engine_args.choose_transfer(settings, plan.kind, transfers)
    model_args = engine_args.of_model(target.config)
    return Outline(
        *(settings, inventory, model, shape, draft, plan, transfer, reason, model_args),
        architectures=_architectures(settings, target, drafting),
    )


def _architectures(
    settings: Settings, target: Description, draft: Description | None
) -> tuple[str, ...]:
    """Return the classes of the models; empty where drafts come from a class that is not told."""
    if settings.speculative_algorithm and draft is None:
        return ()
    described = (target, draft) if draft else (target,)
    return tuple(name for one in described for name in one.config.get("architectures") or ())


_DRAFT = "SPECULATIVE_DRAFT_MODEL_PATH"


def _check_on_cpu(
    settings: Settings, target: Description, draft: Description | None
) -> tuple[str, ...]:
    """Refuse what engines on the CPU cannot run; return notes where the user overrides that."""
    try:
        cpu_families.check("MODEL_PATH", target.name, target.config, settings.speculative_algorithm)
        if draft and draft.name != target.name:
            cpu_families.check_draft(_DRAFT, draft.name, draft.config)
    except PlanRefused as refusal:
        if not settings.cpu_untested_models:
            raise
        return (f"CPU_UNTESTED_MODELS=true, or this would be refused: {refusal}",)
    return ()


@dataclass(frozen=True, slots=True)
class Stack:
    """What a deployment is made with, as "module:name": naming it imports nothing.

    `engine` starts an engine in a worker, `preload` prepares a zygote, `openai` makes the OpenAI
    layer. Tests put a scripted engine in SGLang's place.
    """

    engine: str = "pd_eagle.workers.engine:start"
    preload: str = "pd_eagle.workers.engine:preload"
    openai: str = "pd_eagle.http.openai_api:OpenAIApi"


SGLANG = Stack()


@dataclass(frozen=True, slots=True)
class Deployment:
    """An outline and everything its workers are told.

    `model` is the served name. `environment` is the whole environment of the processes to be
    started, `zygote_variables` is what a zygote needs beside it, and `fork_refusal` says why there
    is to be none. `model_note` says why another model than the documented default is served.
    """

    outline: Outline
    model: str
    model_path: str
    model_note: str | None
    environment: dict[str, str]
    tracing_args: dict[str, Any]
    stack: Stack = SGLANG
    fork_refusal: str | None = None
    zygote_variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        return self.outline.settings

    @property
    def plan(self) -> Plan:
        return self.outline.plan

    def engine_args(self, worker: WorkerPlan, bootstrap_port: int | None) -> dict[str, Any]:
        """Return the arguments of `worker`'s engine."""
        args = engine_args.build(
            self.settings,
            self.plan,
            worker,
            model_path=self.model_path,
            draft_path=self.outline.draft,
            transfer=self.outline.transfer,
            bootstrap_port=bootstrap_port,
            shape=self.outline.shape,
        )
        return {
            **self.tracing_args,
            **self.outline.model_args,
            **self._graphs(worker, args),
            **args,
        }

    def _graphs(self, worker: WorkerPlan, args: Mapping[str, Any]) -> dict[str, Any]:
        if not (gpus := self.outline.inventory.devices):
            return {}
        memory_bytes = min(gpu.total_memory_bytes for gpu in gpus)
        return graph_sizes.arguments(worker.role, worker.tp, memory_bytes, args)

    def preload_args(self) -> dict[str, Any]:
        """Return the arguments of `Stack.preload`: the front's, and the classes of the models."""
        return self.front_args() | {"architectures": list(self.outline.architectures)}

    def front_args(self) -> dict[str, Any]:
        """Return the arguments with which the front reads templates and parsers: the serving
        engines', without what makes them PD, speculative or bound to a GPU.
        """
        args = self.engine_args(self.plan.serving[0], None)
        elsewhere = ("disaggregation_", "speculative_", *self.tracing_args)
        kept = {k: v for k, v in args.items() if not k.startswith(elsewhere)}
        return kept | {"tp_size": 1, "served_model_name": self.model}


def decide(settings: Settings, environ: Mapping[str, str], stack: Stack = SGLANG) -> Deployment:
    """Return the deployment that `settings` ask for on this machine.

    Raises `SettingsError` or `PlanRefused`. The embedded model is converted here, once.
    """
    inventory = devices.discover(settings.device, environ.get("CUDA_VISIBLE_DEVICES"))
    found = outline(settings, inventory, engine_args.installed_transfers())
    name, path, note = found.model, found.model, None
    if found.model == EMBEDDED:
        name, path = demo.NAME, str(demo.model_dir())
        note = (
            f"no GPU was found and MODEL_PATH is unset: serving the embedded {demo.NAME}, a small "
            f"model for trying things out, instead of {DEFAULT}"
        )
    arguments, variables = engine_args.tracing(
        settings.traces_url, installed=engine_args.installed_tracing()
    )
    refusal = _fork_refusal(settings, inventory)
    return Deployment(
        outline=found,
        model=settings.served_model_name or name,
        model_path=path,
        model_note=note,
        environment=_environment(environ, found, embedded=note is not None) | variables,
        tracing_args=arguments,
        stack=stack,
        fork_refusal=refusal,
        zygote_variables={} if refusal else _zygote_variables(inventory, environ),
    )


def _fork_refusal(settings: Settings, inventory: Inventory) -> str | None:
    if not settings.fork_workers:
        return "FORK_WORKERS=false"
    return cuda_answers.why_not(inventory.devices) if inventory.kind == "cuda" else None


def _zygote_variables(inventory: Inventory, environ: Mapping[str, str]) -> dict[str, str]:
    return cuda_answers.environment(inventory.devices, environ) if inventory.devices else {}


def _environment(environ: Mapping[str, str], found: Outline, *, embedded: bool) -> dict[str, str]:
    # Without bytecode a start takes more than twice as long.
    variables = {k: v for k, v in environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    if found.inventory.kind == "cpu":
        threads = found.settings.cpu_threads
        mine = cpu.environment(offline=embedded, threads=threads)
        return variables | mine | _loopback(environ)
    ib_device = found.settings.disagg_ib_device
    own = engine_args.environment("cuda", found.transfer, ib_device)
    return variables | kernel_cache.environment(environ) | _loopback(environ) | own


def _loopback(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what makes the engines' own sockets listen on loopback alone: all are on one host.

    SGLang and Mooncake use the network's address otherwise. An address that the user set is kept.
    """
    if environ.get("SGLANG_HOST_IP") or environ.get("HOST_IP"):
        return {}
    variables = {"SGLANG_HOST_IP": LOOPBACK, "MC_TCP_BIND_ADDRESS": LOOPBACK}
    return {name: environ.get(name) or value for name, value in variables.items()}
