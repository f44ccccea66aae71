"""Results as JSON that a person can read and compare: one sample a line.

A value stands on one line if it fits there, if it is a list of numbers, or if it is an object
without further nesting in a list (a row, a sample). Files are rewritten in this form with

    python -m benchmarks.compact_json FILE...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_WIDTH = 100


def as_text(result: Any) -> str:
    """Return `result` as JSON text with a newline at its end."""
    plain = json.loads(json.dumps(result))  # tuples become lists, keys become strings
    return _layout(plain, "", in_list=False) + "\n"


def write(path: Path, result: Any) -> None:
    """Write `result` so that a reader sees the old file or the new one, never half of one."""
    new = path.with_suffix(".new")
    new.write_text(as_text(result))
    new.replace(path)


def _layout(value: Any, indent: str, *, in_list: bool) -> str:
    line = json.dumps(value)
    if len(indent) + len(line) <= _WIDTH or _is_sample(value, in_list=in_list):
        return line
    below = indent + " "
    if isinstance(value, dict):
        parts = [f"{json.dumps(k)}: {_layout(v, below, in_list=False)}" for k, v in value.items()]
    else:
        parts = [_layout(one, below, in_list=True) for one in value]
    body = f",\n{below}".join(parts)
    return f"{line[0]}\n{below}{body}\n{indent}{line[-1]}"


def _is_sample(value: Any, *, in_list: bool) -> bool:
    if isinstance(value, dict):
        return in_list and not any(isinstance(one, dict | list) for one in value.values())
    if isinstance(value, list):
        return not any(isinstance(one, dict | list | str) for one in value)
    return True


def main() -> int:
    for path in map(Path, sys.argv[1:]):
        write(path, json.loads(path.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
