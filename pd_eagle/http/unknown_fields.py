"""Fields of a body that nothing here knows: refused or told of, never passed over in silence.

It does not know what a known field means.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pd_eagle.errors import InvalidRequest
from pd_eagle.requests.bounds import shown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet

    from pd_eagle.http.answers import Endpoint

logger = logging.getLogger(__name__)

#: The response's header that names what was ignored.
IGNORED = "x-ignored-fields"

_LABELS = dict.fromkeys(
    ("metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    "a label of the client's own",
)
_SERVICE = "there is one kind of service here"
_CACHE = "the prefix cache needs no hints"
#: Fields that an API has and SGLang's class for it has not: ignored on purpose, with the reason.
ON_PURPOSE: Mapping[Endpoint, Mapping[str, str]] = {
    "chat": _LABELS | {"service_tier": _SERVICE, "store": "nothing is stored of a chat"},
    "completion": _LABELS,
    "messages": {"service_tier": _SERVICE, "cache_control": _CACHE, "inference_geo": _SERVICE},
    "count_tokens": {"cache_control": _CACHE},
    "responses": {name: why for name, why in _LABELS.items() if name != "metadata"}
    | {"stream_options": "usage is always sent"},  # metadata come back with the response
}
#: Fields that SGLang's class knows and makes nothing of, though they would change an answer.
_WITHOUT_EFFECT = {"suffix": (None, ""), "best_of": (None, 1)}
_TOLD_AT_MOST = 64
_NAME_CHARS = 40
_told: set[tuple[str, str]] = set()


def take(
    fields: dict[str, Any], endpoint: Endpoint, known: AbstractSet[str], *, strict: bool
) -> list[str]:
    """Take the fields that are not `known` out of `fields`; return their names, as text to show.

    Those that are ignored on purpose are not among these. With `strict`, and for what would change
    an answer, raises `InvalidRequest`.
    """
    _refuse_without_effect(fields, endpoint)
    if fields.keys() <= known:
        return []
    extra = [name for name in fields if name not in known]
    for name in extra:
        del fields[name]
    on_purpose = ON_PURPOSE.get(endpoint, {})
    unknown = [_as_text(name) for name in extra if name not in on_purpose]
    if unknown and strict:
        raise InvalidRequest(
            f"{', '.join(unknown[:8])}: wanted fields that this endpoint knows (STRICT_FIELDS)"
        )
    _tell(endpoint, unknown)
    return unknown[:16]


def _refuse_without_effect(fields: dict[str, Any], endpoint: Endpoint) -> None:
    for name, harmless in _WITHOUT_EFFECT.items() if endpoint == "completion" else ():
        value = fields.get(name)
        if value not in harmless and not (name == "best_of" and value == fields.get("n")):
            raise InvalidRequest(
                f"{name}={shown(value)}: wanted unset: SGLang would make nothing of it"
            )


def _as_text(name: str) -> str:
    """Return `name` as a header and a log line can carry it."""
    text = name.encode("ascii", "backslashreplace").decode()[:_NAME_CHARS]
    return "".join(c if c.isprintable() and c != "," else "?" for c in text)


def _tell(endpoint: str, unknown: list[str]) -> None:
    for name in unknown:
        if len(_told) < _TOLD_AT_MOST and (endpoint, name) not in _told:
            _told.add((endpoint, name))
            logger.warning("%s: field %s is unknown and ignored (STRICT_FIELDS)", endpoint, name)
