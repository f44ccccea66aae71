"""What the settings say of how requests are read and kept; it knows no setting's variable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pd_eagle.plan.front_settings import ApiSettings

_NONE = "off"


@dataclass(frozen=True, slots=True)
class ApiOptions:
    """`preambles` are in lower case. See `ApiSettings` for what each is for."""

    strict_fields: bool = False
    preambles: tuple[str, ...] = ()
    response_store_bytes: int = 64 * 2**20

    @classmethod
    def of(cls, settings: ApiSettings) -> Self:
        given = settings.system_preambles.lower()
        preambles = () if given == _NONE else tuple(p.strip() for p in given.split(","))
        return cls(
            strict_fields=settings.strict_fields,
            preambles=tuple(filter(None, preambles)),
            response_store_bytes=settings.response_store_bytes,
        )
