"""Whether a request carries one of the keys that the operator gave; it knows no HTTP."""

from __future__ import annotations

import secrets

_SCHEME = b"bearer"


def carries_one(keys: str, authorization: bytes, x_api_key: bytes = b"") -> bool:
    """Return whether the value of an Authorization or of an X-API-Key header carries one of `keys`.

    `keys` are separated by commas. What it takes says nothing of how much of a key was right, nor
    which one it was.
    """
    scheme, _, bearer = authorization.strip().partition(b" ")
    known = [key.encode() for key in keys.split(",")]
    right = [secrets.compare_digest(bearer.strip(), key) for key in known]
    bare = [secrets.compare_digest(x_api_key.strip(), key) for key in known]
    return (any(right) and scheme.lower() == _SCHEME) or any(bare)
