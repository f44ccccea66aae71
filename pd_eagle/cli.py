"""The command line: pd-eagle serve | plan | tune | warm | doctor.

It imports neither SGLang nor torch, so that `plan`, `doctor` and `--help` answer in under a second
on any machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pd_eagle import option_types, tune_cli
from pd_eagle.errors import PdEagleError, SettingsError
from pd_eagle.plan import advice, config, deployment, devices, doctor, engine_args, placement
from pd_eagle.plan.setting_groups import GROUPS, TABLE
from pd_eagle.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Exit codes besides 0: the settings or the plan are refused; a check failed.
REFUSED = 2
UNHEALTHY = 1


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Run one command and return its exit code; a refusal goes to standard error."""
    arguments = _parser().parse_args(argv)
    environ = os.environ if environ is None else environ
    try:
        return _run(arguments, environ)
    except PdEagleError as error:
        sys.stderr.write(f"{error.message}\n")
        return REFUSED


def _run(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    if arguments.command == "serve":
        from pd_eagle.serve import main as serve

        return serve(environ)
    if arguments.command == "doctor":
        findings = list(doctor.examine(environ))
        sys.stdout.write("".join(f"{finding}\n" for finding in findings))
        return UNHEALTHY if any(finding.fatal for finding in findings) else 0
    if arguments.command == "tune":
        return 0 if tune_cli.run(arguments, environ) else UNHEALTHY
    if arguments.command == "warm":
        return _warm(arguments, environ)
    outlook = look_ahead(arguments, environ)
    sys.stdout.write(outlook.as_json() if arguments.json else str(outlook))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pd-eagle", description="SGLang with separate prefill and decode, and EAGLE."
    )
    parser.add_argument("--version", action="version", version=VERSION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser(
        "serve",
        help="serve the OpenAI API; settings come from the environment",
        description="Serve the OpenAI API. All settings come from the environment.",
        epilog=settings_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plan = commands.add_parser(
        "plan",
        help="say what would run where, and why; needs no GPU and no weights",
        description="Say what would run where, and why. Other settings: as for serve.",
    )
    plan.add_argument("--gpus", help="plan for these instead: 8xH100, 2xH100,2xA100, cpu")
    plan.add_argument("--model", help="directory or Hugging Face name (MODEL_PATH)")
    plan.add_argument("--draft", help="the same of the draft (SPECULATIVE_DRAFT_MODEL_PATH)")
    plan.add_argument(
        "--prompt", type=option_types.tokens, help="tokens of a prompt: advise a split for it"
    )
    plan.add_argument(
        "--answer", type=option_types.tokens, help="tokens of an answer; with --prompt"
    )
    plan.add_argument(
        "--gap-mean",
        type=option_types.seconds,
        help="mean time between tokens to be kept, in seconds; with --prompt (default:"
        f" {advice.LOOSEST_GAP_S})",
    )
    plan.add_argument("--json", action="store_true", help="print JSON")
    tune_cli.add(commands)
    _add_warm(commands)
    commands.add_parser("doctor", help="check what is installed here, and say what to do")
    return parser


def _add_warm(commands: Any) -> None:
    warm = commands.add_parser(
        "warm",
        help="compile the kernels of the planned engines, once, and keep them for every start",
        description="Start the planned engines, ask them in all sizes of batch so that every kernel"
        " is compiled, and start them again to say what that saves. Settings: as for serve. It"
        " takes the GPUs of this machine while it runs.",
    )
    warm.add_argument("--json", help="write what it found into this file")


def _warm(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    from pd_eagle import warm

    report = warm.run(environ, _progress)
    if report is None:
        sys.stdout.write("engines on a CPU compile no kernels: there is nothing to warm\n")
    else:
        sys.stdout.write("\n".join(report.lines()) + "\n")
    if arguments.json:
        found = dataclasses.asdict(report) if report else None
        Path(arguments.json).write_text(json.dumps(found, indent=2) + "\n")
    return 0


def _progress(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def settings_help() -> str:
    """Return the settings in their groups: variable, default, meaning, accepted values, alias."""
    lines = ["settings:"]
    for title, group in GROUPS.items():
        lines += ["", f"{title}: {group.__doc__}"]
        for row in (row for row in TABLE if row.group == title):
            lines.append(f"  {row.variable}  (default: {row.shown_default})")
            text = f"{row.doc} Wanted: {row.type.wanted}.{row.alias_note}"
            lines += textwrap.wrap(text, 88, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True, slots=True)
class Outlook:
    """What `pd-eagle plan` prints: the plan and its inputs."""

    plan: placement.Plan
    devices: str
    model: str
    weight_bytes: int
    draft: str | None
    transfer: str | None
    transfer_reason: str | None
    warnings: tuple[str, ...]
    advice: advice.Advice | None = None

    def as_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    def __str__(self) -> str:
        lines = [
            f"devices   {self.devices}",
            f"model     {self.model}, {self.weight_bytes / 2**30:.1f} GiB of weights",
        ]
        if self.draft:
            lines.append(f"draft     {self.draft}")
        if self.transfer:
            lines.append(f"transfer  {self.transfer}: {self.transfer_reason}")
        lines += self.advice.lines() if self.advice else ()
        lines += ["", str(self.plan), *(f"warning: {text}" for text in self.warnings), ""]
        return "\n".join(lines)


def look_ahead(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Outlook:
    """Return the plan for --gpus, or for the devices of this machine.

    Raises SettingsError and PlanRefused.
    """
    over = {"MODEL_PATH": arguments.model, "SPECULATIVE_DRAFT_MODEL_PATH": arguments.draft}
    settings = config.Settings.from_env({**environ, **{k: v for k, v in over.items() if v}})
    if arguments.gpus:
        inventory = devices.parse_gpus(arguments.gpus)
        # --gpus describes another machine, on which both are taken to be installed.
        transfers = frozenset({"nixl", "mooncake"})
    else:
        inventory = devices.discover(settings.device, environ.get("CUDA_VISIBLE_DEVICES"))
        transfers = engine_args.installed_transfers()
    found = deployment.outline(settings, inventory, transfers)
    return Outlook(
        plan=found.plan,
        devices=f"{inventory} ({inventory.reason})",
        model=found.model,
        weight_bytes=found.shape.weight_bytes,
        draft=found.draft,
        transfer=found.transfer,
        transfer_reason=found.transfer_reason,
        warnings=settings.warnings,
        advice=_advice(arguments, found),
    )


def _advice(arguments: argparse.Namespace, found: deployment.Outline) -> advice.Advice | None:
    given = (arguments.prompt, arguments.answer, arguments.gap_mean)
    if given == (None, None, None):
        return None
    if arguments.prompt is None or arguments.answer is None:
        raise SettingsError(
            f"--prompt {arguments.prompt} --answer {arguments.answer}: wanted both, in tokens,"
            " e.g. --prompt 3000 --answer 300"
        )
    gap_s = arguments.gap_mean or advice.LOOSEST_GAP_S
    traffic = advice.Traffic(arguments.prompt, arguments.answer, gap_s)
    return advice.advise(traffic, found.plan, found.inventory, found.shape)


if __name__ == "__main__":
    sys.exit(main())
