"""`pd-eagle tune`: starts each candidate plan here, one after the other, and loads it."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import re
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pd_eagle import tune
from pd_eagle.errors import PdEagleError, PlanRefused, SettingsError
from pd_eagle.plan import config, deployment, devices, engine_args, measured, models
from pd_eagle.tune_engine import Prepared, RunningPlan
from pd_eagle.tune_load import Load
from pd_eagle.tune_report import Report
from pd_eagle.tune_traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pd_eagle.plan.devices import Inventory
    from pd_eagle.tune import Candidate, Level, Outcome, Share, Trial
    from pd_eagle.tune_traffic import Asked

logger = logging.getLogger(__name__)

#: A trial sends for this part of the budget, or, so that a queue that grows is seen, for so many
#: times as the first token may take, if that is within the largest part; and within these seconds.
TRIAL_SHARE, OF_FIRST, LARGEST_SHARE = 1 / 45, 4, 1 / 20
SHORTEST_TRIAL_S, LONGEST_TRIAL_S = 3.0, 15.0
#: Of what a burst took, the rate at which the search begins.
_BEGIN = 0.7
#: A stop is expected to take this long, until one has been seen.
_STOP_S = 5.0


def candidates(environ: Mapping[str, str], inventory: Inventory) -> list[Candidate]:
    """Return the plans worth trying on `inventory`: those whose settings give a plan, each once.

    Engines that the user's own settings forbid are left out.
    """
    found: dict[object, Candidate] = {}
    eagle = _eagle(environ, inventory)
    on_gpus = inventory.kind == "cuda"
    ideas = list(_ideas(environ, max(len(inventory.devices), 2), on_gpus))
    tried = [(idea, draft) for idea in ideas for draft in (_WITHOUT, *eagle[:1])]
    # Other trees come last: the default is faster as a rule.
    tried += [(idea, tree) for tree in eagle[1:] for idea in ideas]
    for (name, own), draft in tried:
        drafting = _drafting(environ, draft)
        given = {**environ, **own, **drafting}
        try:
            settings = config.Settings.from_env(given)
            plan = deployment.outline(settings, inventory, engine_args.installed_transfers())
        except (SettingsError, PlanRefused) as error:
            logger.debug("%s%s is left out: %s", name, draft.suffix, error)
            continue
        same = (plan.plan.workers, str(plan.plan.tree), own.get("ENGINE_ARGS"))
        found.setdefault(same, tune.Candidate(name + draft.suffix, {**own, **drafting}))
    return list(found.values())


@dataclass(frozen=True, slots=True)
class _Draft:
    """How a plan drafts: the end of its name, and the settings that ask for it."""

    suffix: str
    settings: Mapping[str, str]


_WITHOUT = _Draft("", {"SPECULATIVE_ALGORITHM": ""})
_TREE = ("SPECULATIVE_NUM_STEPS", "SPECULATIVE_EAGLE_TOPK", "SPECULATIVE_NUM_DRAFT_TOKENS")


def _drafting(environ: Mapping[str, str], draft: _Draft) -> dict[str, str]:
    """Return what `draft` must set: nothing that is so anyway."""
    return {name: value for name, value in draft.settings.items() if environ.get(name, "") != value}


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


def _eagle(environ: Mapping[str, str], inventory: Inventory) -> list[_Draft]:
    """Return EAGLE as variants, where a draft is at hand: with the default tree, and with others.

    A tree that the user set is the only one.
    """
    for algorithm in ("EAGLE3", "EAGLE"):
        eagle = {"SPECULATIVE_ALGORITHM": environ.get("SPECULATIVE_ALGORITHM") or algorithm}
        try:
            settings = config.Settings.from_env({**environ, **eagle})
            deployment.outline(settings, inventory, engine_args.installed_transfers())
        except PdEagleError:  # no draft is known, or it does not fit
            continue
        name = f", {eagle['SPECULATIVE_ALGORITHM']}"
        found = [_Draft(name, eagle)]
        if inventory.kind == "cuda" and not settings.tree_by_hand:
            documented = dict(zip(_TREE, map(str, measured.TREE), strict=True))
            found.append(_Draft(f"{name} tree", eagle | documented))
        return found
    return []


def run(
    environ: Mapping[str, str],
    requests: Sequence[Asked],
    levels: Sequence[Level],
    budget_s: float,
    tell: Callable[[str], None],
    only: str = "",
) -> Report:
    """Try every candidate plan at all `levels` within `budget_s` seconds and report.

    The budget has the starts and the stops of engines in it. `only` is a regular expression that
    a plan's name must match. Raises `PdEagleError`.
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

    def told(line: str) -> None:
        tell(f"[{time.monotonic() - began:4.0f} of {budget_s:.0f} s] {line}")

    told(f"{len(plans)} plans on {inventory}: {', '.join(one.name for one in plans)}")
    trial_s = trial_seconds(budget_s, levels)
    ahead = itertools.pairwise(plans) if _prepares_ahead(inventory) else ()
    following = {before.name: after for before, after in ahead}
    traffic = Traffic(requests, vocab_size)
    runner = _Runner(environ, traffic, tuple(levels), trial_s, told, following)
    try:
        outcomes, untried = tune.search(
            plans,
            runner.try_out,
            len(levels),
            clock=runner.clock,
            ends_at=began + budget_s,
            trial_s=trial_s,
        )
    finally:
        runner.discard()
    took_s = time.monotonic() - began
    return Report(str(traffic), tuple(levels), tuple(outcomes), took_s, budget_s, tuple(untried))


def trial_seconds(budget_s: float, levels: Sequence[Level]) -> float:
    """Return for how many seconds each trial sends requests."""
    queue_s = min(OF_FIRST * max(level.first_s for level in levels), budget_s * LARGEST_SHARE)
    return min(max(budget_s * TRIAL_SHARE, queue_s, SHORTEST_TRIAL_S), LONGEST_TRIAL_S)


def _prepares_ahead(inventory: Inventory) -> bool:
    """On a CPU, imports take turns with the engines that are measured."""
    return inventory.kind == "cuda"


@dataclass(slots=True)
class _Runner:
    """Starts plans and loads them.

    The processes of the `next_` plan import SGLang while a plan starts and is warmed up, where that
    takes nothing from it.
    """

    environ: Mapping[str, str]
    traffic: Traffic
    levels: tuple[Level, ...]
    trial_s: float
    tell: Callable[[str], None]
    next_: Mapping[str, Candidate] = field(default_factory=dict)
    _stops_s: list[float] = field(default_factory=list)
    _ahead: dict[str, Prepared] = field(default_factory=dict)

    @property
    def stop_s(self) -> float:
        """How long a stop of engines is expected to take at most, in seconds."""
        return max(2 * max(self._stops_s), 1.0) if self._stops_s else _STOP_S

    def clock(self) -> float:
        """Return the time as if the engines that run had been stopped, in monotonic seconds."""
        return time.monotonic() + self.stop_s

    def try_out(self, candidate: Candidate, to_beat: Sequence[float], share: Share) -> Outcome:
        """Start `candidate`, find what it keeps, and stop it. Raises `PdEagleError`.

        A start that leaves no time for a trial is ended.
        """
        began = time.monotonic()
        self.tell(f"{candidate.name}: starting")
        prepared = self._prepared(candidate)
        self._prepare_next(candidate)
        limit_s = share.ends_at - self.clock() - share.trial_s
        plan = RunningPlan(prepared, max(limit_s, 1.0))
        try:
            start_s = time.monotonic() - began
            self.tell(f"{candidate.name}: ready after {start_s:.1f} s")
            ends_at = share.measures_until(self.clock(), start_s) - self.stop_s
            outcome = self._found(plan, candidate, to_beat, ends_at)
        finally:
            stopping = time.monotonic()
            plan.stop()
            self._stops_s.append(time.monotonic() - stopping)
        return replace(outcome, start_s=start_s)

    def _prepared(self, candidate: Candidate) -> Prepared:
        return self._ahead.pop(candidate.name, None) or Prepared.of(
            {**self.environ, **candidate.settings}
        )

    def _prepare_next(self, candidate: Candidate) -> None:
        if following := self.next_.get(candidate.name):
            with contextlib.suppress(PdEagleError):  # it is told when that plan's turn comes
                self._ahead[following.name] = self._prepared(following)

    def discard(self) -> None:
        """End what was prepared and never started."""
        for prepared in self._ahead.values():
            prepared.discard()
        self._ahead.clear()

    def _found(
        self, plan: RunningPlan, candidate: Candidate, to_beat: Sequence[float], ends_at: float
    ) -> Outcome:
        load = Load(plan, self.traffic, self.levels, trial_s=self.trial_s, ends_at=ends_at)
        try:
            most = load.warm()
        except tune.OutOfTime:
            ended = ("out of time",) * len(self.levels)
            return tune.Outcome(candidate, (tune.Bracket(),) * len(ended), ended)
        self.tell(f"{candidate.name}: {most:.3g}/s when many ask at once")

        def measure(rate: float) -> Trial:
            trial = load.at(rate)
            self.tell(f"{candidate.name}: {self._said(trial)}")
            return trial

        return tune.find(
            candidate, measure, self.levels, first_per_s=most * _BEGIN, to_beat=to_beat
        )

    def _said(self, trial: Trial) -> str:
        shares = [
            f"{trial.share(number):.0%}{'' if trial.kept(number, level) else ' ✗'}"
            for number, level in enumerate(self.levels)
        ]
        kept = sum("✗" not in share for share in shares)
        verdict = "kept" if kept == len(shares) else "not kept" if not kept else "kept by some"
        cut = ", cut short" if trial.cut_short else ""
        return f"{trial.rate_per_s:.3g}/s {verdict}, good: {', '.join(shares)}{cut}"
