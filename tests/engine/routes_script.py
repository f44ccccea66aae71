"""Print the routes of SGLang's own server: a JSON list of path and methods."""

from __future__ import annotations

import json
import sys
from typing import Any

from sglang.srt.entrypoints.http_server import app


def walk(routes: list[Any]) -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = []
    for route in routes:
        included = getattr(route, "original_router", None)
        if included is not None:
            found += walk(included.routes)
        else:
            methods = getattr(route, "methods", None) or ["WEBSOCKET"]
            found.append((route.path, sorted(methods)))
    return found


sys.stdout.write(f"\n{json.dumps(walk(app.router.routes))}\n")
