"""A stage's results so far, written after every part: an interrupted stage keeps them.

Knows nothing of engines; of GPUs only how many a part needs.
"""

from __future__ import annotations

import json
import re
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.compact_json import write
from benchmarks.provenance import tell

if TYPE_CHECKING:
    from collections.abc import Callable

Found = dict[str, Any]


class Journal:
    """The parts of one stage; `gpus` is how many it has.

    Only parts whose name matches the regular expression `only` are run.
    """

    def __init__(self, path: Path, head: Found, gpus: int, only: str = "") -> None:
        self.gpus = gpus
        self._only = re.compile(only)
        self._path = path
        self._began = time.monotonic()
        self._parts: Found = {}
        self._writing = threading.Lock()
        self._found: Found = head | {"finished": False, "error": None, "parts": self._parts}
        self._write()

    def part(self, name: str, measure: Callable[[], Found], gpus: int = 1) -> Found | None:
        """Return the result of `measure`; None, with the reason on disk, if there is none.

        A part that fails must not stop the others.
        """
        if not self._only.search(name):
            return None
        if self.gpus < gpus:
            self._keep(name, {"skipped": f"needs {gpus} GPUs, found {self.gpus}"})
            return None
        began = time.monotonic()
        self._keep(name, {"error": "cut short"})
        try:
            found = measure()
        except Exception as error:
            message = f"{type(error).__name__}: {error}"[:4000]
            self._keep(name, {"error": message, "trace": _trace(error)})
            return None
        self._keep(name, found | {"took_s": round(time.monotonic() - began, 3)})
        return found

    def so_far(self, name: str, found: Found) -> None:
        """Keep a running part's results so far, marked as cut short until the part ends."""
        self._keep(name, found | {"error": "cut short"})

    def parts_at_once(self, measures: dict[str, Callable[[], Found]], gpus: int = 1) -> None:
        """Run parts that measure no speed concurrently: most of their time is start-up."""
        with ThreadPoolExecutor(len(measures)) as pool:
            for name, measure in measures.items():
                pool.submit(self.part, name, measure, gpus)

    def finish(self, summary: str) -> None:
        self._found |= {"finished": True, "summary": summary}
        self._write()

    @property
    def parts(self) -> Found:
        return self._parts

    def _keep(self, name: str, found: Found) -> None:
        with self._writing:
            self._parts[name] = found
            self._write()
        tell(f"{name}: {json.dumps({k: v for k, v in found.items() if k != 'trace'})[:300]}")

    def _write(self) -> None:
        self._found["seconds"] = round(time.monotonic() - self._began, 3)
        write(self._path, self._found)


def _trace(error: Exception) -> list[str]:
    """Return the traceback of `error`, with file names that do not depend on the machine."""
    calls = traceback.extract_tb(error.__traceback__)[-20:]
    return [f"{Path(call.filename).name}:{call.lineno} {call.name}" for call in calls]


def outcome(parts: Found) -> str:
    """Summarize in one line how the parts ended."""
    failed = [name for name, part in parts.items() if "error" in part]
    skipped = [name for name, part in parts.items() if "skipped" in part]
    said = f"{len(parts) - len(failed) - len(skipped)} of {len(parts)} parts"
    if failed:
        said += f"; failed: {', '.join(failed)}"
    if skipped:
        said += f"; not run: {', '.join(skipped)}"
    return said
