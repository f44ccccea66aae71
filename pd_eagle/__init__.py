"""SGLang prefill and decode engines in one process tree on one host.

The public names, each loaded when it is first used: `pd-eagle plan` must not pay for engines.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from pd_eagle.version import VERSION as __version__

if TYPE_CHECKING:
    from pd_eagle.call_types import GenerateResult as GenerateResult
    from pd_eagle.call_types import SamplingParams as SamplingParams
    from pd_eagle.errors import NotSupported as NotSupported
    from pd_eagle.errors import PdEagleError as PdEagleError
    from pd_eagle.pd_engine import PDEngine as PDEngine
    from pd_eagle.plan.config import Settings as Settings
    from pd_eagle.plan.placement import Plan as Plan

_HOMES = {
    "GenerateResult": "pd_eagle.call_types",
    "NotSupported": "pd_eagle.errors",
    "PDEngine": "pd_eagle.pd_engine",
    "PdEagleError": "pd_eagle.errors",
    "Plan": "pd_eagle.plan.placement",
    "SamplingParams": "pd_eagle.call_types",
    "Settings": "pd_eagle.plan.config",
}

__all__ = [
    "GenerateResult",
    "NotSupported",
    "PDEngine",
    "PdEagleError",
    "Plan",
    "SamplingParams",
    "Settings",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
