"""Who may use which routes: keys, and the host a client is on. It knows no route."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Protocol

from starlette.exceptions import HTTPException

from pd_eagle.http import api_keys

if TYPE_CHECKING:
    from starlette.requests import Request

_FORM = "'Authorization: Bearer KEY' or 'X-API-Key: KEY'"
#: A proxy adds one of them; its client may be anywhere.
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")


class Keys(Protocol):
    """The keys that the operator gave."""

    api_key: str | None
    admin_api_key: str | None


def authorize(request: Request, keys: Keys) -> None:
    """Raise `HTTPException` 401 unless `request` carries a key, where one is set."""
    if keys.api_key is not None and not _carries(keys.api_key, request):
        raise HTTPException(401, f"wrong or missing key: wanted {_FORM}")


def authorize_admin(request: Request, keys: Keys) -> None:
    """Raise `HTTPException` unless `request` may change the service, or see how it is set up.

    With ADMIN_API_KEY it must carry that one; without, it must come from this host, with a usual
    key where one is set.
    """
    if keys.admin_api_key is not None:
        if not _carries(keys.admin_api_key, request):
            raise HTTPException(401, f"wrong or missing key: wanted {_FORM} with ADMIN_API_KEY")
        return
    authorize(request, keys)
    if not _is_local(request):
        raise HTTPException(
            403,
            "only a client on this host may use this route: wanted ADMIN_API_KEY set on the server "
            "and sent as the key",
        )


def _carries(keys: str, request: Request) -> bool:
    # Starlette reads headers as Latin-1: these are the bytes as they were sent, UTF-8 or not.
    bearer, bare = (
        request.headers.get(name, "").encode("latin-1") for name in ("authorization", "x-api-key")
    )
    return api_keys.carries_one(keys, bearer, bare)


def _is_local(request: Request) -> bool:
    if request.client is None or any(name in request.headers for name in _FORWARDED):
        return False
    try:
        address = ipaddress.ip_address(request.client.host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
