"""The traffic that `pd-eagle tune` sends: lengths, what prompts have in common, and when they come.

Knows nothing of engines, nor of which rate is to be tried.
"""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pd_eagle.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_WANTED = (
    "wanted a JSON object with prompt and answer, in tokens ≥ 1, and if need be shared, the"
    " share of the prompt that all have in common, from 0 to 1, and time, in seconds, e.g."
    ' {"prompt": 3000, "answer": 300, "shared": 0.5, "time": 1.25}'
)


@dataclass(frozen=True, slots=True)
class Asked:
    """Tokens of one prompt and its answer; the first part of the prompt, `shared` of it (0 to 1),
    is the same in every request. `time_s` is when it came, where that is known.
    """

    prompt: int
    answer: int
    shared: float = 0.0
    time_s: float | None = None

    def __str__(self) -> str:
        shared = f", {self.shared:.0%} shared" if self.shared else ""
        return f"{self.prompt}/{self.answer}{shared}"


def read_trace(path: str) -> list[Asked]:
    """Return the requests of a JSONL file with `prompt` and `answer`, in tokens, in each line.

    With `time`, in seconds, in every line they are sorted by it. Raises SettingsError that names
    the line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SettingsError(f"--trace {path!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"--trace {path!r}: {error}: wanted UTF-8") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(_asked(json.loads(line)))
        except (ValueError, TypeError, KeyError):
            where = f"--trace {path!r}, line {number}: {line[:80]!r}"
            raise SettingsError(f"{where}: {_WANTED}") from None
    if not found:
        raise SettingsError(f"--trace {path!r}: wanted at least one line")
    return _in_time(path, found)


def _asked(row: dict[str, Any]) -> Asked:
    prompt, answer, time_s = int(row["prompt"]), int(row["answer"]), row.get("time")
    shared = float(row.get("shared", 0))
    if prompt < 1 or answer < 1 or not 0 <= shared <= 1:
        raise ValueError
    if time_s is None:
        return Asked(prompt, answer, shared)
    if not 0 <= (time_s := float(time_s)) < float("inf"):
        raise ValueError
    return Asked(prompt, answer, shared, time_s)


def _in_time(path: str, found: list[Asked]) -> list[Asked]:
    times = [one.time_s for one in found if one.time_s is not None]
    if not times:
        return found
    if len(times) < len(found):
        raise SettingsError(
            f"--trace {path!r}: {len(times)} of {len(found)} lines have a time: wanted it in all"
            " or in none"
        )
    if min(times) == max(times):
        raise SettingsError(f"--trace {path!r}: every time is {times[0]:g}: wanted several times")
    return sorted(found, key=lambda one: one.time_s or 0.0)


class Traffic:
    """Requests without end, in the order of the trace, from its first on again and again."""

    def __init__(self, requests: Sequence[Asked], vocab_size: int) -> None:
        self.requests = tuple(requests)
        self._vocab_size = vocab_size
        self._draw = random.Random(0)
        longest = max(one.prompt for one in requests)
        self._common = self._ids(longest)

    def __str__(self) -> str:
        kinds = list(dict.fromkeys(map(str, self.requests)))
        timed = ", at its own times" if self.requests[0].time_s is not None else ""
        more = f", … ({len(self.requests)} requests{timed})" if len(kinds) > 3 or timed else ""
        return f"{', '.join(kinds[:3])}{more} (prompt/answer tokens)"

    def prompt(self, asked: Asked) -> list[int]:
        """Return token ids: the common part, and the rest at random."""
        common = round(asked.prompt * asked.shared)
        return self._common[:common] + self._ids(asked.prompt - common)

    def arrivals(self, count: int, seconds: float) -> Iterator[tuple[float, Asked]]:
        """Yield `count` requests with their moments, in seconds from 0 to `seconds`.

        Moments are random, or the trace's own, stretched to the rate.
        """
        requests = itertools.cycle(self.requests)
        return zip(self._moments(count, seconds), requests, strict=False)

    def _moments(self, count: int, seconds: float) -> list[float]:
        times = [one.time_s for one in self.requests if one.time_s is not None]
        if not times:
            return sorted(self._draw.uniform(0, seconds) for _ in range(count))
        gaps = [after - before for before, after in itertools.pairwise(times)]
        gaps.append(sum(gaps) / len(gaps))  # from the last to the first of the next round
        chosen = list(itertools.islice(itertools.cycle(gaps), count))
        # The first of a trace may all come at once: then there is nothing to stretch.
        stretch = seconds / (sum(chosen) or 1.0)
        return [0.0, *itertools.accumulate(gap * stretch for gap in chosen[:-1])]

    def _ids(self, count: int) -> list[int]:
        return [self._draw.randrange(self._vocab_size) for _ in range(count)]
