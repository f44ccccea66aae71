"""Whether a request carries one of the keys that the operator gave; it knows no HTTP."""

from __future__ import annotations

import secrets

_SCHEME = b"bearer"


def carries_one(keys: str, authorization: bytes) -> bool:
    """Return whether the value of an Authorization header carries one of `keys`.

    `keys` are separated by commas. What it takes says nothing of how much of a key was right, nor
    which one it was.
    """
    scheme, _, given = authorization.strip().partition(b" ")
    right = [secrets.compare_digest(given.strip(), key.encode()) for key in keys.split(",")]
    return any(right) and scheme.lower() == _SCHEME
