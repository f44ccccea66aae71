"""Finds variables that no setting reads but that were probably meant as one, and suggests which.

It knows our prefixes and which other programs set names that begin like ours. The caller passes the
names of the settings.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_OUR_PREFIXES = ("DISAGG", "SPECULATIVE_", "PD_", "ENABLE_PD", "PREFILL_", "DECODE_")
# Passed between our own processes, never read as a setting.
_INTERNAL_PREFIX = "PD_EAGLE_"
# Hathora sets more variables than the two we read (HATHORA_PROCESS_ID, HATHORA_HOSTNAME, …), so
# only a name close to one of the two is a mistake.
_PLATFORM_PREFIX = "HATHORA_"
_NEAR_MISS = 0.85
# Kubernetes sets these for every service of the namespace, so also for one called "decode".
_SERVICE_LINK = re.compile(r".*_(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
_SERVICE_URLS = ("tcp://", "udp://", "sctp://")


def is_mistaken(name: str, value: str, known: Iterable[str]) -> bool:
    """Tell whether the variable `name`, which no setting has, was meant as one of `known`."""
    if name.startswith(_INTERNAL_PREFIX) or _is_service_link(name, value):
        return False
    if name.startswith(_PLATFORM_PREFIX):
        return bool(difflib.get_close_matches(name, known, n=1, cutoff=_NEAR_MISS))
    return name.startswith(_OUR_PREFIXES)


def _is_service_link(name: str, value: str) -> bool:
    bare_port = name.endswith("_PORT") and value.startswith(_SERVICE_URLS)
    return bare_port or _SERVICE_LINK.fullmatch(name) is not None


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the line that tells the user about `name`, with the nearest of `known`."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else "no setting is called that"
    return f"{name}: {hint}"
