"""The sections of the page of measurements: one function a result, from its JSON to Markdown.

They know the results' keys, not where results are kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.failure_sections import (
    abort_storm,
    fuzz,
    leaving_clients,
    overload,
    poison,
    soak,
)
from benchmarks.markdown_table import table

if TYPE_CHECKING:
    from collections.abc import Callable

Result = dict[str, Any]
_PROFILED_FUNCTIONS = 16


def tree(of: list[int] | None) -> str:
    return ",".join(map(str, of)) if of else "off"


def startup(result: Result) -> str:
    found = result["summary"]
    rows = [
        [f"1 prefill, {n} decode", found["ready_s_median"][n], found["private_mib_total"][n]]
        for n in ("1", "2")
    ]
    return (
        table(["plan", "`make serve` until ready, s", "private memory in total, MiB"], rows)
        + f"\nRatio of the start times: {found['ratio_2_to_1_decode']}. "
        + f"CPU when idle, 1 prefill and 2 decode: {found['idle_cores']} cores.\n"
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
    head = ["model", "mode", "steps,topk,tokens", "batch", "tokens", "equal answers"]
    return (
        "Greedy answers of at most "
        f"{result['summary']['new_tokens_at_most']} tokens in float32, compared with the unified "
        "engine without EAGLE at batch 1.\n\n" + table([*head, "tokens per verification"], rows)
    )


def eagle_rounding(result: Result) -> str:
    found = result["summary"]
    rows = [[name, f"{count} of {found['prompts']}"] for name, count in found["differing"].items()]
    return (
        "Answers in bfloat16 that differ from the plain engine's at batch 1. The first row runs "
        "without EAGLE: another batch size is enough.\n\n"
        + table(["run", "answers that differ"], rows)
        + "\nThe gap between the two best tokens is "
        f"{found['median_gap_of_all_tokens']} nats in the median over all tokens, and at most "
        f"{found['largest_gap_at_a_first_difference']} where an answer first differs: rounding "
        "can flip near ties.\n"
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
    head = ["batch", "steps,topk,tokens", "tokens/s without", "with", "ratio"]
    said = "\n".join(f"- {line}" for line in result["summary"]["advice"])
    return table([*head, "tokens per verification"], rows) + f"\n{said}\n"


def loop_stall(result: Result) -> str:
    found, beside = result["summary"], result["summary"]["a_chat_beside_four_of_12_mib"]
    longest = sorted(result["rows"].items(), key=lambda item: -item[1]["stall_ms"])[:12]
    rows = [
        [
            name.replace(" MiB", "-MiB"),
            row["bytes"],
            row["status"],
            row["stall_ms"],
            row["answer_s"],
        ]
        for name, row in longest
    ]
    return (
        f"The longest that one of {found['requests']} requests blocked the front's event loop: "
        f"{found['longest_stall_ms']} ms ({found['of']}). A small chat beside four large ones took "
        f"{beside['honest_s']:.3f} s, the slowest of those {beside['large_s']:.3f} s.\n\n"
        + table(["request", "bytes", "status", "stall, ms", "answer, s"], rows)
    )


def serving(result: Result) -> str:
    found = result["summary"]
    names = ("ready_s", "private_mib", "shared_out_mib")
    systems = [[row["system"], *(row[n] for n in names)] for row in found["systems"]]
    compared = [[*list(row.values())[:-1], met(row)] for row in found["ratios"]]
    low, high = found["prompt_tokens"]
    least, most = found["new_tokens"]
    parts = [
        f"Prompts of {low} to {high} tokens, answers of {least} to {most}, by SGLang's own client. "
        f"All systems gave the same answer to one question: {met({'met': found['answers_equal']})}."
        "\n",
        table(["system", "first answer, s", "USS, MiB", "PSS, MiB"], systems),
        _at_rates(found["table"]),
        "pd_eagle with PD compared with SGLang's servers behind its router; requests/s with all "
        "requests at once, TTFT at each rate. prefill_forward is the mean time of the engine's "
        "prefill forward pass, where the system's `/metrics` has it: the same computation in all "
        "systems, and at low rates most of the TTFT.\n",
        table(["figure", "pd_eagle", "router", "ratio", "target", "met"], compared),
    ]
    not_started = [f"Not started: {name}: {why}\n" for name, why in found["not_started"].items()]
    return "\n".join(parts + not_started)


def _at_rates(rows: list[Result]) -> str:
    latencies = [f"{what}_{part}_ms" for what in ("ttft", "itl", "e2e") for part in ("p50", "p99")]
    names = ["requests_per_s", "tokens_per_s", "cpu_s_per_1000_tokens", "prefill_forward_ms"]
    names += latencies
    cells = [[r["system"], r["rate"], *(r.get(name) or "" for name in names)] for r in rows]
    titles = (name.removesuffix("_ms") + ", ms" * name.endswith("_ms") for name in names)
    return table(["system", "offered, requests/s", *titles], cells)


def met(row: Result) -> str:
    return "yes" if row["met"] else "no"


def interference(result: Result) -> str:
    found = result["summary"]
    rows = [
        [
            *(row["plan"], *(row["gaps"][p] for p in ("p50", "p95", "p99", "max"))),
            *(row["gaps_alone"]["p99"], row["long_prompts"]["p50"]),
        ]
        for row in found["table"]
    ]
    compared = [[r["to"], r["ratio"], r["wanted"], met(r)] for r in found["p99_ratio_of_pd"]]
    head = ["plan", "gap p50, ms", "p95", "p99", "max", "p99 alone", "long prompt p50, ms"]
    return (
        f"{found['streams']} streams decode while a prompt of {found['long_prompt_tokens']} tokens "
        f"arrives every {found['every_s']} s. {found['note']}\n\n"
        + table(head, rows)
        + "\nThe 99th percentile of PD's gaps compared with that of one engine:\n\n"
        + table(["against", "ratio", "target", "met"], compared)
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
    head = ["load", "front, CPU µs per token, without", "everything counted ten times"]
    head += ["added by counting once, %, median"]
    return (
        f"{found['streams']} streams at once. Paced: a token per stream every 10 ms; flat out: "
        "unlimited. Rounds of one kind differ by more than counting costs, so everything is "
        "counted ten times and the difference divided by ten. Target: at most "
        f"{found['limit_percent']:g} % of the paced load.\n\n"
        + table([*head, "quartiles", "rounds"], rows)
        + f"\nOne scrape of our series: {found['scrape_ms']} ms; once a minute that is "
        f"{found['scrape_percent_of_a_core']} % of a core.\n"
    )


def _profile(result: Result) -> str:
    costs = {
        one["streams"]: one["own_us_per_token"]
        for one in result["profile"]
        if "own_us_per_token" in one
    }
    if not costs:
        return ""
    most = costs[max(costs)]
    rows = [
        [f"`{name}`", *(costs[streams].get(name, "") for streams in costs)]
        for name in list(most)[:_PROFILED_FUNCTIONS]
    ]
    head = ["in this function alone", *(f"µs per token at {streams} streams" for streams in costs)]
    said = "Profile of our front: its cost divided by the share of py-spy's samples.\n\n"
    return f"\n{said}" + table(head, rows)


def _apart(found: dict[str, Any]) -> str:
    names = ("token_us", "request_us", "ours_to_this_token", "ours_to_this_request")
    rows = [[row["side"], *(row.get(name, "") for name in names)] for row in found["table"]]
    head = ["side", "per token, CPU µs", "per request, CPU µs"]
    head += ["ours to this: token", "request"]
    short, longer = found["tokens"]
    return (
        f"\nThe front's cost at {found['streams']} streams, split by answers of {short} and of "
        f"{longer} tokens:\n\n"
    ) + table(head, rows)


def front(result: Result) -> str:
    found = result["summary"]
    names = ("front_us_per_token", "workers_us_per_token", "token_ms_p50", "tokens_per_s")
    ratios = ("ours_to_this", "ours_with_workers_to_this")
    rows = [
        [row["streams"], row["side"], *(row[n] for n in names), *(row.get(r, "") for r in ratios)]
        for row in found["table"]
    ]
    head = ["streams", "side", "front, CPU µs per token", "workers, CPU µs per token"]
    head += ["token latency, ms (median)", "tokens/s"]
    said = f"Counted as front{result['counted']}".replace("\n", " ")
    page = table([*head, "ours to this", "ours with its workers to this"], rows) + f"\n{said}\n"
    if apart := found.get("apart"):
        page += _apart(apart)
    page += _profile(result)
    if commit := result.get("before"):
        page += f"\n`before` is this project at commit {commit}.\n"
    if flat := found.get("flat"):
        page += (
            f"\nA token of ours at {flat['streams'][1]} streams costs {flat['ratio']} times one at "
            f"{flat['streams'][0]}; target: at most {flat['wanted_at_most']}.\n"
        )
    return page


def compare_sglang(result: Result) -> str:
    found = result["systems"].items()
    rows = [[name, of["requests"], of["equal"], of["accounted_for"]] for name, of in found]
    reasons: dict[str, list[int]] = {}
    for number, (_, of) in enumerate(found):
        for reason, count in of["reasons"].items():
            reasons.setdefault(reason, [0] * len(rows))[number] = count
    return (
        "The same requests over all routes to ours and to SGLang's own server.\n\n"
        + table(["ours", "requests", "equal answers", "equal, or with a reason"], rows)
        + "\n"
        + table(["reason", *result["systems"]], [[why, *n] for why, n in sorted(reasons.items())])
    )


SECTIONS: dict[str, tuple[str, Callable[[Result], str]]] = {
    "serving": ("Compared with SGLang's own servers", serving),
    "interference": ("Long prompts beside streams", interference),
    "startup": ("Start time, memory, idle CPU", startup),
    "eagle_speed": ("EAGLE: speed on this CPU", eagle_speed),
    "eagle_lossless": ("EAGLE: lossless", eagle_lossless),
    "eagle_rounding": ("EAGLE: bfloat16", eagle_rounding),
    "eagle_sampling": ("EAGLE: sampling", eagle_sampling),
    "soak": ("Processes killed under load", soak),
    "soak_mooncake": ("Processes killed under load, Mooncake", soak),
    "poison": ("Requests that crash engines", poison),
    "fuzz": ("Requests of any form", fuzz),
    "leaving_clients": ("Three times the load, clients leaving", leaving_clients),
    "abort_storm": ("Aborted requests", abort_storm),
    "overload": ("Overload", overload),
    "loop_stall": ("One request against the event loop", loop_stall),
    "metrics_cost": ("Cost of the metrics", metrics_cost),
    "front": ("CPU cost of the front", front),
    "front_wings": ("CPU cost of the front, before and after modules became packages", front),
    "compare_sglang": ("Answers compared with SGLang's own server", compare_sglang),
}
