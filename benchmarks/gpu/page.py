"""The stages' results as tables: for the page of measurements and for the README."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.journal import outcome
from benchmarks.gpu.stage import STAGES, stage_file
from benchmarks.markdown_table import table
from benchmarks.provenance import RESULTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Found = dict[str, Any]
GPU_RESULTS = RESULTS / "gpu"
NOT_MEASURED = "Not measured: no run of `benchmarks/gpu` on GPUs is kept here.\n"


def results(folder: Path = GPU_RESULTS) -> dict[str, Found]:
    """Return the committed results by file, in the order of stages, which may have several.

    Only of those stages that have a table here.
    """
    stems = {path.stem: path for path in folder.glob("stage-*.json")}
    files = [
        stem
        for name in STAGES
        for stem in sorted(stems)
        if name in _TABLES and stem.startswith(stage_file(name))
    ]
    return {stem: json.loads(stems[stem].read_text()) for stem in files}


def section(folder: Path = GPU_RESULTS) -> str:
    """Return the chapter on GPUs of the page of measurements."""
    found = results(folder)
    if not found:
        return f"## On GPUs\n\n{NOT_MEASURED}"
    parts = ["## On GPUs\n"]
    for file, result in found.items():
        name = file.split("-")[2]
        head, rows = _TABLES[name]
        parts.append(f"### {_TITLES[name]}\n\n{_origin(file, result)}")
        if name in _NOTES:
            parts.append(_NOTES[name])
        parts.append(table(head, _rows(result["parts"], rows, len(head))))
    return "\n".join(parts)


def short(folder: Path = GPU_RESULTS) -> str:
    """Return the README's summary of the GPU results: hardware and outcome of each stage."""
    found = results(folder)
    if not found:
        return NOT_MEASURED
    lines = [
        f"- {_TITLES[file.split('-')[2]]}: {_hardware(r)}, {_ending(r)}."
        for file, r in found.items()
    ]
    load = {file: result for file, result in found.items() if "-load" in file}
    more = [_load_at_most(load)] if load else []
    return "\n".join([*lines, *more, "\nThe figures are in [benchmarks](benchmarks/README.md).\n"])


def _load_at_most(results: dict[str, Found]) -> str:
    """Return the services at the highest rate of each mix, in the order in which they ran."""
    head = ["7B shape", *_RATES, "median to the first token, s", "p99 of gaps, s"]
    lines: list[list[Any]] = []
    parts = [(file, *part) for file, result in results.items() for part in result["parts"].items()]
    for file, name, part in parts:
        when = next((f", {word}" for word in ("first", "warm") if f"-{word}" in file), "")
        for mix in (mix for mix in ("chat", "long prompts") if mix in part):
            run = _renamed(part[mix][-1])
            speeds = [run[key] for key in ("offered_per_s", "completed_per_s", "goodput_per_s")]
            times = [run["first_token_s"]["p50"], run["gap_s"]["p99"]]
            lines.append([f"{name}: {mix}{when}", *speeds, *times])
    return "\n" + table(head, lines).removesuffix("\n")


#: Keys of committed results from before the names of today.
_OLD_KEYS = {
    "rate_per_s": "offered_per_s",
    "answers_per_s": "completed_per_s",
    "good_answers_per_s": "goodput_per_s",
    "asked": "offered",
    "answered": "completed",
}


def _renamed(run: Found) -> Found:
    return {_OLD_KEYS.get(key, key): value for key, value in run.items()}


def _completed(run: Found) -> str:
    return f"{run['completed']} of {run['offered']}"


def _hardware(result: Found) -> str:
    gpus = result["hardware"]["gpus"]
    names = [f"{gpus.count(name)} × `{name}`" for name in dict.fromkeys(gpus)]
    return ", ".join(names) or "no GPU"


def _ending(result: Found) -> str:
    parts = result.get("summary") or outcome(result["parts"])
    return parts if result["finished"] else f"cut short, {result['error']}: {parts}"


def _origin(file: str, result: Found) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    marked = " **A dry run on the CPU.**" if result["dry_run"] else ""
    return (
        f"`{' '.join(result['command'])}` → `{file}.json`: {_hardware(result)}; "
        f"{versions}; commit {result['commit'][:12]}. {_ending(result)}.{marked}\n"
    )


def _rows(
    parts: Found, of: Callable[[str, Found], Iterator[list[object]]], width: int
) -> Iterator[list[object]]:
    """Yield the rows of every part; a part without a result gets one row with the reason."""
    for name, part in parts.items():
        if "error" in part or "skipped" in part:
            why = part.get("skipped") or f"failed: {part['error'].splitlines()[0][:160]}"
            yield [name, why.replace("|", "\\|"), *[""] * (width - 2)]
        else:
            yield from of(name, part)


def _plan(name: str, part: Found) -> Iterator[list[object]]:
    if "mode" in part:
        yield [name, part["mode"], part["right"], part["transfer"] or "–", part["reason"]]


def _start(name: str, part: Found) -> Iterator[list[object]]:
    if "ready_s" in part:
        forked = {True: "yes", False: "no"}.get(part.get("forked", ""), "–")
        yield [name, part["ready_s"], part["transfer"] or "–", forked, "–"]
    elif "steps" in part:
        touched = [step["module"] for step in part["steps"] if step["cuda_initialised"]]
        last = part["steps"][-1]
        first = touched[0] if touched else "nothing"
        yield [name, "–", "–", last["why_not_fork"] or "may be forked", first]
    else:  # servers, from the command
        for server, found in part.items():
            if isinstance(found, dict):
                forked = "no" if any(found["spawned_because"]) else "yes"
                yield [f"{name}: {server}", found["ready_s"], "–", forked, "–"]


def _same(name: str, part: Found) -> Iterator[list[object]]:
    by_batch = {"8 at once": part} if "equal" in part else part
    for at_once, found in by_batch.items():
        if isinstance(found, dict):
            accepted = found["tokens_per_verification"] or "–"
            gaps = [gap for gap in found.get("gaps_at_first_difference", []) if gap is not None]
            equal = f"{found['equal']} of {found['answers']}"
            yield [name, at_once, equal, max(gaps, default="–"), accepted]


def _kill(name: str, part: Found) -> Iterator[list[object]]:
    for victim, found in part.items():
        if isinstance(found, dict) and "restarts" in found:
            pause = found["pause_s"]
            whole = f"{found['complete']} of {part['streams']}"
            first = found.get("first_token_s", {}).get("max", "–")
            yield [name, victim, whole, found["equal"], pause["p50"], pause["max"], first]


def _eagle(name: str, part: Found) -> Iterator[list[object]]:
    for batch, found in part.items():
        if batch.startswith("batch "):
            accepted = found["tokens_per_verification"] or "–"
            simulated = "simulated" if part.get("simulated_acceptance") else ""
            before = "yes" if part.get("asked_before") else "no"
            yield [name, batch[6:], found["tokens_per_s"], accepted, simulated, before]


def _load(name: str, part: Found) -> Iterator[list[object]]:
    for mix in ("chat", "long prompts"):
        for run in map(_renamed, part[mix]):
            first, gap = run["first_token_s"], run["gap_s"]
            speeds = [run[key] for key in ("offered_per_s", "completed_per_s", "goodput_per_s")]
            times = [first.get("p50", "–"), first.get("p99", "–"), gap.get("p99", "–")]
            yield [name, mix, *speeds, _completed(run), *times]


def _transfer(name: str, part: Found) -> Iterator[list[object]]:
    for what, found in part.items():
        if not isinstance(found, dict):
            continue
        if "seconds_a_request" in found:
            told = [found.get(key, "–") for key in ("total_mb", "latency_ms", "speed_gb_s")]
            yield [name, f"{what} tokens", *told, found["seconds_a_request"]]
        else:
            copies = found.items()
            yield from ([f"copy, {what}", size, "–", "–", speed, "–"] for size, speed in copies)


def _mixed(name: str, part: Found) -> Iterator[list[object]]:
    for run in part["runs"]:
        for mix in (mix for mix in ("chat", "long prompts") if mix in run):
            of = _renamed(run[mix])
            times = [of[key].get(at, "–") for key in _TIMES for at in ("p50", "p95")]
            yield [run["plan"], run["load"], mix, of["offered_per_s"], _completed(of), *times]


def _tune(name: str, part: Found) -> Iterator[list[object]]:
    for level in part["levels"]:
        said, plans = level["level"], level["plans"]
        if "chosen" not in level:
            keeps = plans[level["winner"]]["keeps_per_s"] if level["winner"] else "–"
            time = f"{part['took_s']:.0f} of {part['budget_s']:.0f}"
            yield [name, said, level["winner"] or "none", keeps, "–", "–", "–", time]
        else:
            own = plans.get(level["chosen"], {}).get("keeps_per_s", "–")
            best = level["best_by_keeps"]
            ratios = [level["keeps_ratio"], level["goodput_ratio"]]
            yield [name, said, level["chosen"] or "none", own, best, *ratios, "–"]


_TIMES = ("first_token_s", "mean_gap_s", "longest_gap_s")
#: What a reader must know besides a table's numbers.
_NOTES = {
    "transfer": (
        "ms and GB/s are SGLang's own. Over NIXL they count from the first chunk sent to the end,"
        " so a prompt of several chunks holds the computing of its later ones; over Mooncake they"
        " count from the last chunk. They do not compare the two: the whole request does, and takes"
        " as long over both. A prompt in one chunk of 16,384 tokens took 11.2 ms over NIXL and"
        " 8.9 ms over Mooncake (`two-h100-a22d01b.json`).\n"
    ),
}


_TITLES = {
    "plan": "The plan",
    "start": "The start",
    "same": "The same tokens",
    "kill": "A scheduler killed under load",
    "eagle": "EAGLE by batch size",
    "load": "Load",
    "transfer": "KV transfer",
    "mixed": "Chat and long prompts at once",
    "tune": "The plan that `pd-eagle tune` chooses",
}
_OFFERED, _SHARE = "offered, requests/s", "completed of offered"
_RATES = [_OFFERED, "completed, requests/s", "goodput, requests/s"]
_FIRST = ["p50 to the first token, s", "p99", "p99 of gaps, s"]
_TABLES: dict[str, tuple[list[str], Callable[[str, Found], Iterator[list[object]]]]] = {
    "plan": (["part", "mode", "as it must be", "transfer", "reason"], _plan),
    "start": (["part", "ready, s", "transfer", "forked", "CUDA initialised by"], _start),
    "same": (
        [
            "part",
            "at once",
            "equal answers",
            "largest gap at a difference, nats",
            "tokens a verification",
        ],
        _same,
    ),
    "kill": (
        [
            *("part", "killed", "complete", "equal", "median pause, s", "longest, s"),
            "longest to the first token, s",
        ],
        _kill,
    ),
    "eagle": (
        [
            *("part", "at once", "tokens/s", "tokens a verification", "acceptance"),
            "asked once before",
        ],
        _eagle,
    ),
    "load": (["service", "mix", *_RATES, _SHARE, *_FIRST], _load),
    "transfer": (["part", "what", "MB", "ms", "GB/s", "whole request, s"], _transfer),
    "mixed": (
        [
            *("plan", "load", "mix", _OFFERED, _SHARE),
            *("p50 to the first token, s", "p95", "p50 of mean gaps, s", "p95"),
            *("p50 of longest gaps, s", "p95"),
        ],
        _mixed,
    ),
    "tune": (
        [
            *("part", "level", "chosen", "keeps, requests/s", "best of the ladder"),
            *("chosen / best", "the same by goodput", "seconds used"),
        ],
        _tune,
    ),
}
