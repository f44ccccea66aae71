"""The table of settings, in groups; reading, `--help` and the README are made from it.

It does not know where values come from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pd_eagle.plan.engine_settings import EagleSettings, ModelSettings, PDSettings
from pd_eagle.plan.front_settings import (
    ApiSettings,
    FailureSettings,
    LimitSettings,
    ServerSettings,
    TracingSettings,
)
from pd_eagle.plan.setting import Setting, rows

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Title → group, in the order of `--help` and of the README.
GROUPS = {
    "Server": ServerSettings,
    "API": ApiSettings,
    "Model and engines": ModelSettings,
    "PD": PDSettings,
    "EAGLE": EagleSettings,
    "Limits": LimitSettings,
    "Failures": FailureSettings,
    "Tracing": TracingSettings,
}

TABLE: tuple[Setting, ...] = tuple(rows(GROUPS))
DEFAULTS: Mapping[str, Any] = {row.field: row.default for row in TABLE}
