"""The same requests to our server and to SGLang's own, answer by answer.

    python -m benchmarks.compare_sglang

A tiny model in float32 on the CPU platform, greedy: SGLang's server once, then ours unified, over
NIXL, over Mooncake and with EAGLE. Every difference has a reason in `compare_reasons`, or counts as
wrong: exits with 1 if there is one. Knows how servers are asked; not what is asked or why answers
differ.
"""

from __future__ import annotations

import argparse
import dataclasses
import http.client
import json
import tempfile
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.compare_answers import Answer, Difference, answer, differences
from benchmarks.compare_fields import CONTEXT
from benchmarks.compare_reasons import REASONS
from benchmarks.compare_requests import FATAL, Case, cases
from benchmarks.provenance import conclude, tell
from benchmarks.systems import Running, ours, sglang_alone
from tests.tiny_models import tiny_draft, tiny_model

if TYPE_CHECKING:
    from benchmarks.systems import Setup

_AT_A_TIME = 4
_TIMEOUT_S = 120.0
_EAGLE = {
    "SPECULATIVE_ALGORITHM": "EAGLE",
    "SPECULATIVE_NUM_STEPS": "2",
    "SPECULATIVE_EAGLE_TOPK": "2",
    "SPECULATIVE_NUM_DRAFT_TOKENS": "4",
}
OURS: dict[str, dict[str, str]] = {
    "unified": {"PD_MODE": "off"},
    "PD, NIXL": {"PD_MODE": "on", "DISAGG_TRANSFER_BACKEND": "nixl"},
    "PD, Mooncake": {"PD_MODE": "on", "DISAGG_TRANSFER_BACKEND": "mooncake"},
    "PD, EAGLE": {"PD_MODE": "on", "DISAGG_TRANSFER_BACKEND": "nixl"} | _EAGLE,
}

Answers = dict[str, Answer]


def ask(url: str, case: Case) -> Answer:
    """Return what the server at `url` answers; status 0 if nothing came."""
    raw = case.body if isinstance(case.body, bytes) else None
    if raw is None and case.body is not None:
        raw = json.dumps(case.body).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url + case.path, raw, headers, method=case.method)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            kind = response.headers.get("content-type", "")
            return answer(response.status, kind, response.read())
    except urllib.error.HTTPError as error:
        with error:
            return answer(error.code, error.headers.get("content-type", ""), error.read())
    except (OSError, http.client.HTTPException) as error:
        return Answer(0, f"{type(error).__name__}: {error}")


def ask_all(name: str, setup: Setup, asked: list[Case]) -> Answers:
    """Start a server, ask it everything, stop it."""
    with Running(name, setup) as server, ThreadPoolExecutor(_AT_A_TIME) as pool:
        tell(f"{name}: ready after {server.ready_s:.0f} s")
        found = pool.map(lambda case: ask(server.url, case), asked)
        answers = {case.name: one for case, one in zip(asked, found, strict=True)}
    dead = [name for name, one in answers.items() if one.status == 0]
    tell(f"{name}: {len(dead)} without an answer {dead[:8]}")
    return answers


def compare(system: str, mine: Answers, theirs: Answers) -> dict[str, Any]:
    """Return how many answers are equal, which reasons explain others, and what none explains."""
    equal, reasons = 0, Counter[str]()
    unexplained: dict[str, list[dict[str, str]]] = {}
    for name, reference in theirs.items():
        found = differences(mine[name], reference)
        equal += not found
        why = {one: _why(system, name, one) for one in found}
        if left := [one for one, reason in why.items() if reason is None]:
            unexplained[name] = [_row(one) for one in left]
        elif found:
            reasons.update({reason for reason in why.values() if reason})
    accounted = len(theirs) - len(unexplained)
    tell(f"{system}: {accounted} of {len(theirs)} accounted for, {equal} of them equal")
    return {
        "requests": len(theirs),
        "equal": equal,
        "accounted_for": accounted,
        "reasons": dict(reasons.most_common()),
        "unexplained": unexplained,
    }


def _why(system: str, name: str, difference: Difference) -> str | None:
    covering = (reason.why for reason in REASONS if reason.covers(system, name, difference))
    return next(covering, None)


def _row(one: Difference) -> dict[str, str]:
    return {"path": one.path, "ours": one.ours, "theirs": one.theirs}


def _reference(file: Path | None, settings: dict[str, str], asked: list[Case]) -> Answers:
    """Return SGLang's answers, from `file` if it is there; else they are kept in it."""
    if file is not None and file.exists():
        kept = json.loads(file.read_text())
        return {
            name: Answer(**one) for name, one in kept.items() if name in {c.name for c in asked}
        }
    spared = [case for case in asked if case.name not in FATAL]
    theirs = ask_all("SGLang", sglang_alone(settings), spared)
    theirs |= dict.fromkeys(FATAL, Answer(0, "not asked: SGLang's scheduler dies of it"))
    if file is not None:
        file.write_text(json.dumps({n: dataclasses.asdict(one) for n, one in theirs.items()}))
    return theirs


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    model = tiny_model(folder / "model", context=CONTEXT)
    draft = tiny_draft(folder / "draft", model)
    asked = cases()[: 40 if arguments.quick else None]
    settings = {"MODEL_PATH": str(model), "SERVED_MODEL_NAME": "tiny", "LOG_LEVEL": "WARNING"}
    theirs = _reference(arguments.reference, settings, asked)
    systems = {}
    for name in arguments.systems or OURS:
        extra = OURS[name]
        if "SPECULATIVE_ALGORITHM" in extra:
            extra = extra | {"SPECULATIVE_DRAFT_MODEL_PATH": str(draft)}
        mine = ask_all(f"ours {name}", ours(**settings, **extra), asked)
        systems[name] = compare(name, mine, theirs)
    total = sum(one["requests"] for one in systems.values())
    accounted = sum(one["accounted_for"] for one in systems.values())
    return {
        "summary": {
            "requests": len(asked),
            "accounted_for": f"{accounted} of {total} accounted for",
            "equal": {name: one["equal"] for name, one in systems.items()},
        },
        "wrong": total - accounted,
        "systems": systems,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="40 requests")
    parser.add_argument("--systems", nargs="*", choices=list(OURS), help="of ours (default: all)")
    parser.add_argument("--reference", type=Path, help="file for SGLang's answers, to reuse them")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments, Path(folder))
    return conclude("compare_sglang", result, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
