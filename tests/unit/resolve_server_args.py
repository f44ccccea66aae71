"""A process of its own that asks SGLang what it makes of engine arguments: JSON in, JSON out.

Reads a list of keyword arguments, resolves each as `sglang.Engine` does before it starts anything,
and writes the names that SGLang knows and, for each, the resolved fields or the error.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> None:
    from sglang.srt.arg_groups.arg_utils import record_fields
    from sglang.srt.server_args import ServerArgs

    results = [_resolve(ServerArgs, given) for given in json.load(sys.stdin)]
    names = [field.name for field in record_fields(ServerArgs)]
    with open(sys.argv[1], "w", encoding="utf-8") as out:
        json.dump({"names": names, "results": results}, out, default=str)


def _resolve(record: Any, given: dict[str, Any]) -> dict[str, Any]:
    arguments = record(**given)
    try:
        arguments.resolve_once()
        arguments.check_server_args()
    except Exception as error:
        return {"error": repr(error)}
    resolved: dict[str, Any] = arguments.resolved_dict()
    return resolved


if __name__ == "__main__":
    main()
