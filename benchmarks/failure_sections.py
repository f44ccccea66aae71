"""The page's sections on faults, hostile requests and overload, one function a result."""

from __future__ import annotations

from typing import Any

from benchmarks.markdown_table import table

Result = dict[str, Any]


def soak(result: Result) -> str:
    found, pause = result["summary"], result["summary"]["longest_pause_s"]
    return (
        f"{found['strikes']} processes killed or stopped in {found['seconds']:.0f} s "
        f"({found['transfer']}): {found['requests_sent']} requests sent, {found['answered']} "
        f"answered, {found['wrong']} wrong, {found['failed']} failed, "
        f"{found['failed_503_plan_down']} refused because the plan was down. Longest pause within "
        f"an answer: median {pause['p50']} s, maximum {pause['max']} s, because restarts back "
        "off.\n"
    )


def poison(result: Result) -> str:
    found, pause = result["summary"], result["summary"]["honest_longest_pause_s"]
    restarts = ", ".join(f"{name} {count}" for name, count in found["restarts"].items())
    return (
        f"{found['honest_streams_at_a_time']} streams at a time, and for {found['seconds']:.0f} s "
        f"every 5 s a request that crashes the engine it is in ({found['poison_sent']} of them): "
        f"{found['honest_exact']} of {found['honest_sent']} texts exact, {found['honest_failed']} "
        f"failed, {found['workers_given_up']} workers given up. {found['engine_deaths']} engine "
        f"deaths; restarts: {restarts}. Longest pause within an answer: median {pause['p50']} s, "
        f"maximum {pause['max']} s, because restarts compete for the CPU.\n"
    )


def fuzz(result: Result) -> str:
    found, live = result["summary"], result["summary"]["live_s"]
    ends = found["statuses"]
    statuses = ", ".join(f"{status}: {n}" for status, n in sorted(ends.items()))
    errors = sum(n for status, n in ends.items() if status.startswith("5"))
    return (
        f"{found['sent']} requests drawn from the schemas of SGLang's request classes "
        f"({statuses}; 200+ is a stream that ended with an error event): {errors} answered with "
        f"5xx, {ends.get('timeout', 0)} not answered, {found['worker_restarts']} worker restarts, "
        f"{found['inflight_afterwards']} open afterwards. `/health/live` answered within "
        f"{live['p99']} s at the 99th percentile, {live['max']} s at most. The slowest answer took "
        f"{found['slowest_answer_s']} s.\n"
    )


def leaving_clients(result: Result) -> str:
    found = result["summary"]
    ends = ", ".join(f"{end}: {n}" for end, n in sorted(found["ends"].items()))
    return (
        f"{found['offered_requests_per_s']} requests/s offered for {found['seconds']:.0f} s to a "
        f"server that completes {found['fits_requests_per_s']}/s, every second client leaving "
        f"({ends}). Afterwards {found['inflight_afterwards']} running and "
        f"{found['queued_afterwards']} "
        f"waiting, and {found['whole_together_afterwards']} of {found['places']} places taken at "
        f"once gave whole answers; {found['restarts']} restarts.\n"
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
        f"{found['requests']} requests aborted: {moments}. The next request took "
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
        f"{found['requests_a_burst']} requests at once, of which 64 may run. Latency of "
        f"`/health/live` meanwhile: median {live['p50']} s, maximum {live['max']} s. Resident "
        f"memory of the front before: {found['front_rss_mib'][0]} MiB.\n\n"
        + table(["burst", "200", "429", "503", "front after it, MiB"], rows)
    )
