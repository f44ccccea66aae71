"""`pd-eagle tune`: starts each candidate plan here, one after the other, and loads it.

Requests are sent at random moments, whoever has not answered yet. It decides nothing: `tune` does.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pd_eagle import tune
from pd_eagle.errors import PdEagleError, PlanRefused, SettingsError
from pd_eagle.pd_engine import PDEngine
from pd_eagle.plan import config, deployment, devices, engine_args, models

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pd_eagle.plan.devices import Inventory
    from pd_eagle.tune import Candidate, Level, Outcome, Report, Trial

logger = logging.getLogger(__name__)

#: A trial sends for this long, and at least so many requests.
TRIAL_S, FEWEST = 8.0, 12
#: Drain: what is not answered by then was not good.
_PATIENCE = 2.0


@dataclass(frozen=True, slots=True)
class Asked:
    """Tokens of one prompt and its answer."""

    prompt: int
    answer: int


def read_trace(path: str) -> list[Asked]:
    """Return the requests of a JSONL file with `prompt` and `answer`, in tokens, in each line.

    Raises SettingsError that names the line. Times are not read: requests come at random moments.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SettingsError(f"--trace {path!r}: {error.strerror}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            one = Asked(int(row["prompt"]), int(row["answer"]))
        except (ValueError, TypeError, KeyError):
            one = Asked(0, 0)
        if one.prompt < 1 or one.answer < 1:
            raise SettingsError(
                f"--trace {path!r}, line {number}: {line[:80]!r}: wanted a JSON object with prompt"
                ' and answer, in tokens ≥ 1, e.g. {"prompt": 3000, "answer": 300}'
            )
        found.append(one)
    if not found:
        raise SettingsError(f"--trace {path!r}: wanted at least one line")
    return found


def candidates(environ: Mapping[str, str], inventory: Inventory) -> list[Candidate]:
    """Return the plans worth trying on `inventory`: those whose settings give a plan, each once.

    Engines that the user's own settings forbid are left out.
    """
    found: dict[object, Candidate] = {}
    eagle = _eagle(environ, inventory)
    for name, own in _ideas(environ, max(len(inventory.devices), 2), inventory.kind == "cuda"):
        for suffix, drafting in (("", {}), *eagle):
            given = {**environ, **own, **drafting}
            try:
                settings = config.Settings.from_env(given)
                plan = deployment.outline(settings, inventory, engine_args.installed_transfers())
            except (SettingsError, PlanRefused) as error:
                logger.debug("%s%s is left out: %s", name, suffix, error)
                continue
            same = (plan.plan.workers, bool(drafting), own.get("ENGINE_ARGS"))
            found.setdefault(same, tune.Candidate(name + suffix, {**own, **drafting}))
    return list(found.values())


def _ideas(
    environ: Mapping[str, str], engines: int, on_gpus: bool
) -> Iterator[tuple[str, dict[str, str]]]:
    yield f"unified × {engines}", {"UNIFIED_REPLICAS": str(engines)}
    for prefill in range(1, engines):
        split = {
            "PD_MODE": "on",
            "PREFILL_REPLICAS": str(prefill),
            "DECODE_REPLICAS": str(engines - prefill),
        }
        yield f"PD {prefill}+{engines - prefill}", split
    if on_gpus:
        for chunk in (512, 2048):
            mixed = {"chunked_prefill_size": chunk, "enable_mixed_chunk": True}
            own = json.dumps(json.loads(environ.get("ENGINE_ARGS") or "{}") | mixed)
            replicas = {"UNIFIED_REPLICAS": str(engines), "ENGINE_ARGS": own}
            yield f"unified × {engines}, chunk {chunk}", replicas
        if engines % 2 == 0:
            pairs = {"UNIFIED_REPLICAS": str(engines // 2), "TP_SIZE": "2"}
            yield f"unified × {engines // 2}, TP 2", pairs


def _eagle(environ: Mapping[str, str], inventory: Inventory) -> list[tuple[str, dict[str, str]]]:
    """Return EAGLE as a variant, where a draft is at hand."""
    for algorithm in ("EAGLE3", "EAGLE"):
        eagle = {"SPECULATIVE_ALGORITHM": environ.get("SPECULATIVE_ALGORITHM", algorithm)}
        try:
            settings = config.Settings.from_env({**environ, **eagle})
            deployment.outline(settings, inventory, engine_args.installed_transfers())
        except PdEagleError:  # no draft is known, or it does not fit
            continue
        return [(f", {eagle['SPECULATIVE_ALGORITHM']}", eagle)]
    return []


def run(
    environ: Mapping[str, str],
    requests: Sequence[Asked],
    level: Level,
    budget_s: float,
    tell: Callable[[str], None],
    only: str = "",
) -> Report:
    """Try every candidate plan within `budget_s` seconds and report.

    `only` is a regular expression that a plan's name must match. Raises `PdEagleError`.
    """
    began = time.monotonic()
    settings = config.Settings.from_env(environ)
    inventory = devices.discover(settings.device, environ.get("CUDA_VISIBLE_DEVICES"))
    vocab_size = models.load_shape(models.model_of(settings, inventory.kind)).vocab_size
    plans = [one for one in candidates(environ, inventory) if re.search(only, one.name)]
    if not plans:
        raise PlanRefused(
            f"no plan fits {inventory} with these settings: see pd-eagle plan, and --only"
        )
    tell(f"{len(plans)} plans on {inventory}, {budget_s:.0f} s")

    def try_out(candidate: Candidate, to_beat: float, ends_at: float) -> Outcome:
        return _try_out(environ, candidate, requests, level, to_beat, ends_at, vocab_size, tell)

    outcomes, untried = tune.search(plans, try_out, clock=time.monotonic, ends_at=began + budget_s)
    kinds = ", ".join(f"{one.prompt}/{one.answer}" for one in requests[:3])
    traffic = f"{kinds}{', …' if len(requests) > 3 else ''} (prompt/answer tokens)"
    return tune.Report(traffic, level, tuple(outcomes), time.monotonic() - began, tuple(untried))


def _try_out(
    environ: Mapping[str, str],
    candidate: Candidate,
    requests: Sequence[Asked],
    level: Level,
    to_beat: float,
    ends_at: float,
    vocab_size: int,
    tell: Callable[[str], None],
) -> Outcome:
    began = time.monotonic()
    with PDEngine(**config.keywords({**environ, **candidate.settings})) as engine:
        start_s = time.monotonic() - began
        tell(f"{candidate.name}: ready after {start_s:.1f} s")
        load = _Load(engine, requests, level, ends_at, vocab_size)
        alone_s = load.warm()

        def measure(rate: float) -> Trial:
            trial = load.at(rate)
            verdict = "kept" if trial.kept(level) else "not kept"
            tell(f"{candidate.name}: {rate:.3g}/s {verdict}, {trial.good} of {trial.asked} good")
            return trial

        outcome = tune.bracket(
            candidate,
            measure,
            level,
            first_per_s=1 / max(alone_s, 1e-3),
            to_beat_per_s=to_beat,
        )
    return replace(outcome, start_s=start_s)


class _Load:
    """Sends requests to one engine at a rate."""

    def __init__(
        self,
        engine: PDEngine,
        requests: Sequence[Asked],
        level: Level,
        ends_at: float,
        vocab_size: int,
    ) -> None:
        self._engine = engine
        self._requests = requests
        self._level = level
        self._ends_at = ends_at
        self._vocab_size = vocab_size
        self._draw = random.Random(0)

    def warm(self) -> float:
        """Send one request, twice; return how long the second took, in seconds."""
        for _ in range(2):
            began = time.monotonic()
            asyncio.run(self._one(self._requests[0]))
        return time.monotonic() - began

    def at(self, rate: float) -> Trial:
        """Send at `rate` a second. Raises `OutOfTime` where the budget ends before the trial."""
        seconds = max(TRIAL_S, FEWEST / rate)
        longest = max(one.answer for one in self._requests)
        drain_s = _PATIENCE * (self._level.first_s + longest * self._level.mean_gap_s)
        if time.monotonic() + seconds > self._ends_at:
            raise tune.OutOfTime
        return asyncio.run(self._offered(rate, seconds, drain_s))

    async def _offered(self, rate: float, seconds: float, drain_s: float) -> Trial:
        count = max(1, round(rate * seconds))
        moments = sorted(self._draw.uniform(0, seconds) for _ in range(count))
        began = time.monotonic()
        asking = []
        for number, moment in enumerate(moments):
            await asyncio.sleep(max(0.0, began + moment - time.monotonic()))
            one = self._requests[number % len(self._requests)]
            asking.append(asyncio.create_task(self._one(one)))
        left_s = max(0.0, self._ends_at - time.monotonic())
        done, late = await asyncio.wait(asking, timeout=min(drain_s, left_s))
        took_s = time.monotonic() - began
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        if late and left_s < drain_s:
            raise tune.OutOfTime  # they were cut off by the budget, not by the level
        return self._summed(rate, count, list(done), took_s)

    def _summed(
        self, rate: float, count: int, done: list[asyncio.Task[tuple[float, list[float]]]], s: float
    ) -> Trial:
        times = [task.result() for task in done if task.exception() is None]
        errors = {str(error) for task in done if (error := task.exception()) is not None}
        means = [sum(gaps) / len(gaps) for _, gaps in times if gaps]
        return tune.Trial(
            rate_per_s=rate,
            asked=count,
            good=sum(self._level.keeps(first, gaps) for first, gaps in times),
            answers_per_s=len(times) / s,
            first_p95_s=_p95([first for first, _ in times]),
            mean_gap_p95_s=_p95(means),
            errors=tuple(sorted(errors))[:3],
        )

    async def _one(self, asked: Asked) -> tuple[float, list[float]]:
        """Return when the first token came, and the gaps between those that followed."""
        ids = [self._draw.randrange(self._vocab_size) for _ in range(asked.prompt)]
        params = {"max_new_tokens": asked.answer, "ignore_eos": True, "temperature": 0}
        began = last = time.monotonic()
        first, gaps, seen = 0.0, [], 0
        stream = await self._engine.async_generate(
            input_ids=ids, sampling_params=params, stream=True
        )
        async for result in stream:
            now, tokens = time.monotonic(), len(result["output_ids"])
            if not seen:
                first = now - began
            elif tokens > seen:
                # Drafts that are accepted come together: the gap is shared among them.
                gaps += [(now - last) / (tokens - seen)] * (tokens - seen)
            last, seen = now, tokens
        return first, gaps


def _p95(values: list[float]) -> float:
    return sorted(values)[int(0.95 * (len(values) - 1))] if values else 0.0
