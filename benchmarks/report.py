"""Writes benchmarks/README.md from the results beside it: no figure in it is typed by hand.

python -m benchmarks.report
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from benchmarks.provenance import RESULTS, ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Result = dict[str, Any]
PAGE = ROOT / "benchmarks/README.md"

HEAD = """# Measurements

Made by `python -m benchmarks.report` from the files in `results`, which hold the raw numbers. Every
table names its file, the machine, the versions and the commit. Times are those of that machine, a
small one that often had other work; what carries over are ratios within one table. **Nothing here
was measured on a GPU.**

Run one with the command above its table; `--quick` makes a short run that is not kept.
"""


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(head), *([str(cell) for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def tree(of: list[int] | None) -> str:
    return ",".join(map(str, of)) if of else "off"


def startup(result: Result) -> str:
    found = result["summary"]
    rows = [
        [f"1 prefill, {n} decode", found["ready_s_median"][n], found["private_mib_total"][n]]
        for n in ("1", "2")
    ]
    return (
        table(["plan", "`make serve` until ready, s", "private memory in all, MiB"], rows)
        + f"\nRatio of the times: {found['ratio_2_to_1_decode']}. "
        + f"Idle, 1 prefill and 2 decode: {found['idle_cores']} cores.\n"
    )


def eagle_lossless(result: Result) -> str:
    rows = [
        [
            *(run["model"], run["mode"], tree(run["tree"]), run["batch"], run["tokens"]),
            f"{run['equal']} of {run['prompts']}",
            run["tokens_per_verification"] or "–",
        ]
        for run in result["runs"]
    ]
    head = ["model", "mode", "steps,topk,tokens", "at once", "tokens", "equal answers"]
    return (
        "Greedy answers of at most "
        f"{result['summary']['new_tokens_at_most']} tokens in float32, against the unified engine "
        "without EAGLE, one at a time.\n\n" + table([*head, "tokens a verification"], rows)
    )


def eagle_rounding(result: Result) -> str:
    found = result["summary"]
    rows = [[name, f"{count} of {found['prompts']}"] for name, count in found["differing"].items()]
    return (
        "Answers in bfloat16 that differ somewhere from the plain engine's, one at a time. The "
        "first row runs no EAGLE: another batch size is enough.\n\n"
        + table(["run", "answers that differ"], rows)
        + "\nBetween the two likeliest tokens lie "
        f"{found['median_gap_of_all_tokens']} nats in the median of all places, and at most "
        f"{found['largest_gap_at_a_first_difference']} where an answer first differs: rounding "
        "turns near ties.\n"
    )


def eagle_sampling(result: Result) -> str:
    found = result["summary"]
    tests = {
        "without EAGLE, against the model": found["against_the_model"]["without_eagle"],
        "with EAGLE, against the model": found["against_the_model"]["with_eagle"],
        "with and without EAGLE": found["against_each_other"],
        "with EAGLE, against temperature 0.9 (must fail)": found["against_temperature_0.9"],
    }
    rows = [[name, t["chi_squared"], t["freedom"], t["p"]] for name, t in tests.items()]
    return (
        f"{found['draws_each']} draws each of the first two tokens at temperature "
        f"{found['temperature']}.\n\n"
        + table(["test", "chi-squared", "degrees of freedom", "p"], rows)
    )


def eagle_speed(result: Result) -> str:
    names = ("tokens_per_s_without", "tokens_per_s_with", "ratio", "tokens_per_verification")
    rows = [
        [row["batch"], tree(row["tree"]), *(row[name] for name in names)]
        for row in result["summary"]["table"]
    ]
    head = ["at once", "steps,topk,tokens", "tokens/s without", "with", "ratio"]
    said = "\n".join(f"- {line}" for line in result["summary"]["advice"])
    return table([*head, "tokens a verification"], rows) + f"\n{said}\n"


def soak(result: Result) -> str:
    found, pause = result["summary"], result["summary"]["longest_pause_s"]
    return (
        f"{found['strikes']} processes killed or stopped in {found['seconds']:.0f} s "
        f"({found['transfer']}): {found['requests_sent']} requests sent, {found['answered']} "
        f"answered, {found['wrong']} wrong, {found['failed']} failed, "
        f"{found['failed_503_plan_down']} refused because the plan was down. Longest pause of an "
        f"answer: median {pause['p50']} s, most {pause['max']} s: each restart waits longer.\n"
    )


def abort_storm(result: Result) -> str:
    found = result["summary"]
    moments = ", ".join(f"{name} {count}" for name, count in sorted(found["moments"].items()))
    rows = [
        [name, *found["before"]["workers"][name], *found["after"]["workers"][name]]
        for name in found["before"]["workers"]
    ]
    head = ["worker", "running before", "KV tokens before", "running after", "KV tokens after"]
    return (
        f"{found['requests']} requests given up: {moments}. The next one took "
        f"{found['the_next_request_s']} s.\n\n" + table(head, rows)
    )


def overload(result: Result) -> str:
    found = result["summary"]
    rows = [
        [n + 1, *(statuses.get(code, 0) for code in ("200", "429", "503")), rss]
        for n, (statuses, rss) in enumerate(
            zip(found["statuses"], found["front_rss_mib"][1:], strict=True)
        )
    ]
    live = found["live_s"]
    return (
        f"{found['requests_a_burst']} requests at once, of which 64 may run. `/health/live` "
        f"meanwhile: median {live['p50']} s, most {live['max']} s. Memory of the front before: "
        f"{found['front_rss_mib'][0]} MiB.\n\n"
        + table(["burst", "200", "429", "503", "front afterwards, MiB"], rows)
    )


def metrics_cost(result: Result) -> str:
    found = result["summary"]
    rows = [
        [
            load.replace("_", " "),
            run["us_per_token_without"],
            run["us_per_token_with"],
            run["percent_median"],
            "{} to {}".format(*run["percent_quartiles"]),
            run["rounds"],
        ]
        for load, run in found["loads"].items()
    ]
    head = ["load", "CPU of the front for a token, µs, without", "with", "more, %, median"]
    return (
        f"{found['streams']} streams at once. Paced: a token a stream every 10 ms; flat out: as "
        "many as come. Wanted: at most "
        f"{found['limit_percent']:g} % of the paced one.\n\n"
        + table([*head, "half of the rounds", "rounds"], rows)
        + f"\nOne scrape of our series: {found['scrape_ms']} ms; once a minute that is "
        f"{found['scrape_percent_of_a_core']} % of a core.\n"
    )


SECTIONS: dict[str, tuple[str, Callable[[Result], str]]] = {
    "startup": ("Start, memory, idling", startup),
    "eagle_speed": ("EAGLE: speed on this CPU", eagle_speed),
    "eagle_lossless": ("EAGLE: the same tokens", eagle_lossless),
    "eagle_rounding": ("EAGLE: bfloat16", eagle_rounding),
    "eagle_sampling": ("EAGLE: sampling", eagle_sampling),
    "soak": ("Processes killed under load", soak),
    "soak_mooncake": ("Processes killed under load, Mooncake", soak),
    "abort_storm": ("Requests given up", abort_storm),
    "overload": ("Too much at once", overload),
    "metrics_cost": ("What the series cost", metrics_cost),
}


def origin(name: str, result: Result) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    hardware = result["hardware"]
    cpu = hardware.get("cpu", hardware.get("machine"))
    commit = result["commit"][:12] + ("+" if result["commit"].endswith("+") else "")
    command = " ".join(result.get("command", ["python", "-m", f"benchmarks.bench_{name}"]))
    return (
        f"`{command}` → `results/{name}.json`: {hardware['cpus']} × {cpu}, no GPU; {versions}; "
        f"commit {commit}.\n"
    )


def page() -> str:
    parts = [HEAD]
    for name, (title, render) in SECTIONS.items():
        path = RESULTS / f"{name}.json"
        if not path.exists():
            parts.append(f"## {title}\n\nNot measured.\n")
            continue
        result = json.loads(path.read_text())
        parts.append(f"## {title}\n\n{origin(name, result)}\n{render(result)}")
    return "\n".join(parts)


def main() -> int:
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
