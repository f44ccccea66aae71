"""What a JSON text costs to parse, counted before it is parsed, in steps that release the GIL.

It knows nothing of what the values mean, and takes any text for JSON.
"""

from __future__ import annotations

#: What they cost beside a number, and beside their comma.
_CONTAINER, _STRING = 7, 1


def has_more_values(text: bytes, most: int) -> bool:
    """Return whether the JSON in `text` has more than `most` values, an object or list counted as
    8 of them and a string as 2.

    Looks no further than needed to know; commas and brackets within strings do not count.
    """
    values, at = 0, 0
    while values <= most:
        quote = text.find(b'"', at)
        end = len(text) if quote < 0 else quote
        containers = text.count(b"[", at, end) + text.count(b"{", at, end)
        values += text.count(b",", at, end) + _CONTAINER * containers
        if quote < 0:
            return values > most
        values += _STRING
        at = _end_of_string(text, quote + 1)
    return True


def _end_of_string(text: bytes, at: int) -> int:
    """Return where the string ends whose first character is at `at`."""
    while (quote := text.find(b'"', at)) >= 0:
        escapes = quote
        while escapes > at and text[escapes - 1] == 0x5C:
            escapes -= 1
        if (quote - escapes) % 2 == 0:
            return quote + 1
        at = quote + 1
    return len(text)
