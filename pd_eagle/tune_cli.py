"""`pd-eagle tune` on the command line: its options, and where its results go."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pd_eagle import option_types, tune_plot
from pd_eagle.errors import SettingsError
from pd_eagle.tune import Level

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from pd_eagle.tune_report import Report
    from pd_eagle.tune_traffic import Asked

_DEFAULT = {"ttft": 1.0, "gap-mean": 0.05, "gap-max": math.inf, "quantile": 0.95}


def add(commands: Any) -> None:
    """Add the command to an argument parser's commands."""
    tune = commands.add_parser(
        "tune",
        help="measure which plan takes most of a traffic here, within a time",
        description="Start candidate plans one after the other, find for each the highest rate that"
        " keeps each level, and name the settings of the best. Other settings: as for serve. It"
        " takes the GPUs of this machine while it runs.",
    )
    _add_traffic(tune)
    _add_levels(tune)
    tune.add_argument(
        "--budget",
        type=option_types.span,
        default=900.0,
        help="time in all, starts and stops of engines included: 15m, 90s, 1h (15m)",
    )
    tune.add_argument(
        "--only",
        type=option_types.pattern,
        default="",
        help="try only plans whose name matches this regular expression",
    )
    tune.add_argument("--json", type=Path, help="write all trials into this file")
    tune.add_argument("--plot", type=Path, help="draw what each plan keeps into this file (.png)")


def _add_traffic(tune: argparse.ArgumentParser) -> None:
    tune.add_argument("--prompt", type=option_types.tokens, help="tokens of a prompt")
    tune.add_argument("--answer", type=option_types.tokens, help="tokens of an answer")
    tune.add_argument(
        "--shared",
        type=option_types.share,
        help="share of the prompt that is the same in all requests, e.g. 0.5 (none)",
    )
    tune.add_argument(
        "--trace",
        help='instead: a file with lines {"prompt": 3000, "answer": 300}, each with "shared", and'
        ' all with "time" in s, if need be; times are stretched to the rate that is tried',
    )


def _add_levels(tune: argparse.ArgumentParser) -> None:
    tune.add_argument("--ttft", type=option_types.seconds, help="time to the first token, s (1.0)")
    tune.add_argument(
        "--gap-mean", type=option_types.seconds, help="mean time between tokens, s (0.05)"
    )
    tune.add_argument(
        "--gap-max", type=option_types.seconds, help="longest time between tokens, s (any)"
    )
    tune.add_argument(
        "--quantile", type=option_types.share, help="share of answers to keep all of it (0.95)"
    )
    tune.add_argument(
        "--level",
        type=option_types.level,
        action="append",
        default=[],
        metavar="ttft=1.0,gap-mean=0.02,gap-max=0.05",
        help="a level to judge every trial by; give it several times for several levels. What it"
        " leaves out is taken from the four options above",
    )


def run(arguments: argparse.Namespace, environ: Mapping[str, str]) -> bool:
    """Measure, print the report and write the files; False if no plan kept any level.

    Raises `PdEagleError`.
    """
    requests = _requests(arguments)
    for option, path in (("--json", arguments.json), ("--plot", arguments.plot)):
        _check_writable(option, path)
    if arguments.plot:
        tune_plot.check(arguments.plot)
    from pd_eagle import tune_run

    report = tune_run.run(
        environ, requests, levels(arguments), arguments.budget, _progress, arguments.only
    )
    _write(report, arguments)
    sys.stdout.write("\n".join(report.lines()) + "\n")
    return report.has_winner


def levels(arguments: argparse.Namespace) -> list[Level]:
    """Return the levels of the options, of which there is at least one; each once."""
    common = {
        name: given if (given := getattr(arguments, name.replace("-", "_"))) is not None else value
        for name, value in _DEFAULT.items()
    }
    found = [common | one for one in arguments.level or [{}]]
    return list(
        dict.fromkeys(
            Level(one["ttft"], one["gap-mean"], one["gap-max"], one["quantile"]) for one in found
        )
    )


def _requests(arguments: argparse.Namespace) -> list[Asked]:
    from pd_eagle import tune_traffic

    pair = (arguments.prompt, arguments.answer)
    given = f"--prompt {pair[0]} --answer {pair[1]} --trace {arguments.trace}"
    if (None in pair) is (arguments.trace is None) or (pair != (None, None) and arguments.trace):
        raise SettingsError(f"{given}: wanted --prompt and --answer, or --trace")
    if arguments.trace is None:
        return [tune_traffic.Asked(*pair, arguments.shared or 0.0)]
    if arguments.shared is not None:
        raise SettingsError(
            f"--shared {arguments.shared:g} --trace {arguments.trace}: wanted --shared with"
            ' --prompt and --answer, or "shared" in the lines of the trace'
        )
    return tune_traffic.read_trace(arguments.trace)


def _check_writable(option: str, path: Path | None) -> None:
    """Refuse a file that could not be written, before minutes are spent on what goes into it."""
    if path and (path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK)):
        raise SettingsError(f"{option} {str(path)!r}: wanted a file that can be written")


def _write(report: Report, arguments: argparse.Namespace) -> None:
    found = report.as_json()
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", "utf-8")
    if arguments.plot:
        tune_plot.write(found, arguments.plot)


def _progress(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
