"""What speculative decoding does to the parameters of a request: exact, relaxed, or not read.

SGLang 0.5.23 verifies a whole tree of guesses with the penalties as they were before its first
token, and counts one token a verification (`eagle_sample` and `eagle_prepare_for_decode` in
srt/speculative/eagle_utils.py). What it does not read at all is refused, since the answer would not
be what was asked for. It knows nothing of drafts or engines.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

from pd_eagle.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pd_eagle.messages import Request

logger = logging.getLogger(__name__)

Treatment = Literal["exact", "relaxed", "refused"]

#: Parameter → the value that means "none", how it is treated, and what that means; the README's
#: table of them is held to this one.
TREATMENTS: Mapping[str, tuple[object, Treatment, str]] = {
    "temperature": (None, "exact", "at 0 the same tokens, else the same distribution"),
    "top_k": (None, "exact", "the same distribution"),
    "top_p": (None, "exact", "the same distribution"),
    "logit_bias": (None, "exact", "added at every guess"),
    "sampling_seed": (None, "exact", "the same distribution, but another answer than without"),
    "min_p": (0.0, "refused", "SGLang does not read it when it verifies guesses"),
    "custom_logit_processor": (
        None,
        "refused",
        "SGLang does not call it when it verifies guesses",
    ),
    "frequency_penalty": (0.0, "relaxed", "of an accepted run only the last token counts"),
    "presence_penalty": (0.0, "relaxed", "of an accepted run only the last token counts"),
    "repetition_penalty": (1.0, "relaxed", "of an accepted run only the last token counts"),
    "min_new_tokens": (0, "relaxed", "counts verifications, so the answer may be longer"),
}
_EXACT: tuple[object, Treatment, str] = (None, "exact", "")


class EagleRules:
    """The rules for one service; what is relaxed is said once for each parameter."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def check(self, request: Request) -> None:
        """Raise `InvalidRequest` for a parameter that would not be read."""
        for name in _given(request):
            _, treatment, meaning = TREATMENTS[name]
            if treatment == "refused":
                raise InvalidRequest(
                    f"{name}: wanted unset, {meaning}, and SPECULATIVE_ALGORITHM is on"
                )
            if treatment == "relaxed" and name not in self._said:
                self._said.add(name)
                logger.warning(
                    "%s is relaxed by speculative decoding (%s): answers differ from those "
                    "without SPECULATIVE_ALGORITHM. Said once",
                    name,
                    meaning,
                )

    def correct_defaults(self, defaults: dict[str, Any]) -> None:
        """Remove from a model's own `defaults` what would be refused, and log it."""
        for name in [name for name in defaults if TREATMENTS.get(name, _EXACT)[1] == "refused"]:
            logger.warning(
                "%s=%r of the model's generation_config.json is left out: %s",
                name,
                defaults.pop(name),
                TREATMENTS[name][2],
            )


def _given(request: Request) -> Iterator[str]:
    """Yield the parameters of `request` that ask for something."""
    params = request.sampling_params
    for name, (none, _, _) in TREATMENTS.items():
        value = getattr(request.options, name, None) if name not in params else params[name]
        if value is not None and value != none:
            yield name
