"""From settings to all that is needed to start: devices, model, plan, transfer, engine arguments.

Nothing is started here and nothing needs SGLang; what cannot work is refused here, with its reason.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pd_eagle import cpu, demo, devices, drafts, engine_args, models, placement
from pd_eagle.config import DEFAULT_MODEL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pd_eagle.config import Settings
    from pd_eagle.devices import Inventory
    from pd_eagle.models import ModelShape
    from pd_eagle.placement import Plan, WorkerPlan

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Deployment:
    """A plan and everything its workers are told, decided and checked.

    `environment` is the whole environment of the processes to be started. `model_note` says why
    another model than the documented default is served.
    """

    settings: Settings
    inventory: Inventory
    plan: Plan
    shape: ModelShape
    model: str
    model_path: str
    model_note: str | None
    draft_path: str | None
    transfer: str | None
    transfer_reason: str | None
    environment: dict[str, str]

    def engine_args(self, worker: WorkerPlan, bootstrap_port: int | None) -> dict[str, Any]:
        """Return the arguments of `worker`'s engine."""
        return engine_args.build(
            self.settings,
            self.plan,
            worker,
            model_path=self.model_path,
            draft_path=self.draft_path,
            transfer=self.transfer or "",
            bootstrap_port=bootstrap_port,
            shape=self.shape,
        )

    def front_args(self) -> dict[str, Any]:
        """Return the arguments with which the front reads templates and parsers: the serving
        engines', without what makes them PD, speculative or bound to a GPU.
        """
        args = self.engine_args(self.plan.serving[0], None)
        elsewhere = ("disaggregation_", "speculative_")
        kept = {k: v for k, v in args.items() if not k.startswith(elsewhere)}
        return kept | {"tp_size": 1, "served_model_name": self.model}


def decide(settings: Settings, environ: Mapping[str, str]) -> Deployment:
    """Return the deployment that `settings` ask for on this machine.

    Raises `SettingsError` or `PlanRefused`. The embedded model is converted here, once.
    """
    inventory = devices.discover(settings.device, environ.get("CUDA_VISIBLE_DEVICES"))
    model_path, model, note = _model(settings, inventory)
    shape = models.load_shape(model_path)
    draft_path = drafts.draft_path(settings, model)
    draft_shape = models.load_shape(draft_path) if draft_path else None
    plan = placement.plan(settings, inventory, shape, draft_shape)
    transfer, transfer_reason = None, None
    if plan.mode == "pd":
        installed = engine_args.installed_transfers()
        transfer, transfer_reason = engine_args.choose_transfer(settings, inventory.kind, installed)
    return Deployment(
        settings=settings,
        inventory=inventory,
        plan=plan,
        shape=shape,
        model=settings.served_model_name or model,
        model_path=model_path,
        model_note=note,
        draft_path=draft_path,
        transfer=transfer,
        transfer_reason=transfer_reason,
        environment=_environment(environ, settings, inventory, transfer, embedded=bool(note)),
    )


def _model(settings: Settings, inventory: Inventory) -> tuple[str, str, str | None]:
    if settings.model_path is not None:
        return settings.model_path, settings.model_path, None
    if inventory.kind == "cuda":
        return DEFAULT_MODEL, DEFAULT_MODEL, None
    note = (
        f"no GPU was found and MODEL_PATH is unset: serving the embedded {demo.NAME}, a small "
        f"model for trying things out, instead of {DEFAULT_MODEL}"
    )
    return str(demo.model_dir()), demo.NAME, note


def _environment(
    environ: Mapping[str, str],
    settings: Settings,
    inventory: Inventory,
    transfer: str | None,
    *,
    embedded: bool,
) -> dict[str, str]:
    # Without bytecode a start takes more than twice as long.
    variables = {k: v for k, v in environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    if inventory.kind == "cpu":
        return variables | cpu.environment(offline=embedded)
    return variables | engine_args.environment("cuda", transfer, settings.disagg_ib_device)
