"""Engine arguments that are set by default because they were measured to be better, with reasons.

The user's engine arguments take precedence. It knows nothing of devices or of how a plan is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pd_eagle.plan import measured

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pd_eagle.messages import Role
    from pd_eagle.plan.config import Settings
    from pd_eagle.plan.devices import Kind

#: KV tokens that stand for one request where a limit on requests is derived from the KV pool.
TOKENS_PER_REQUEST = 256
#: SGLang 0.5.23, srt/arg_groups/speculative_hook.py: taken silently where none is set.
_SGLANG_SPECULATIVE_CAP = 48
# SGLang 0.5.23, srt/arg_groups/memory_hook.py: the largest batch in a CUDA graph on 80 GB cards
# and larger; a larger one decodes without a graph.
_LARGEST_GRAPH, _LARGEST_GRAPH_FROM_TP_4 = 256, 512
# SGLang 0.5.23 refuses or ignores mixed steps beside these.
_NOT_MIXED = ("dllm_algorithm", "enable_hisparse", "enable_layernorm_sp")


@dataclass(frozen=True, slots=True)
class Default:
    """One engine argument that the user did not set, for engines of `role`, or of all (None)."""

    name: str
    value: int | bool
    reason: str
    role: Role | None = None

    def __str__(self) -> str:
        return f"{self.name}={self.value}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Tree:
    """The draft tree and its reason: steps, branches at each, tokens verified at once."""

    steps: int
    topk: int
    tokens: int
    reason: str

    def __str__(self) -> str:
        return f"EAGLE steps {self.steps}, topk {self.topk}, tokens {self.tokens}: {self.reason}"


def tree(settings: Settings, kind: Kind) -> Tree | None:
    """Return the draft tree for devices of `kind`; None without speculative decoding."""
    if settings.speculative_algorithm is None:
        return None
    given = (
        settings.speculative_num_steps,
        settings.speculative_eagle_topk,
        settings.speculative_num_draft_tokens,
    )
    if settings.tree_by_hand:
        return Tree(*given, f"{' and '.join(settings.tree_by_hand)} set")
    if kind == "cpu":
        return Tree(*given, "the documented default")
    rows = measured.SPECULATION
    faster = ", ".join(f"{row.chain / row.off - 1:+.0%} at {row.at_once}" for row in rows)
    documented = ", ".join(f"{row.tree / row.off - 1:+.0%}" for row in rows)
    reason = (
        f"a chain against no drafts on an H100: {faster} requests at once (measured with simulated"
        f" acceptance {measured.TOKENS_A_VERIFICATION:g}); the documented"
        f" {','.join(map(str, measured.TREE))}: {documented}. SPECULATIVE_NUM_STEPS,"
        " SPECULATIVE_EAGLE_TOPK and SPECULATIVE_NUM_DRAFT_TOKENS set it"
    )
    return Tree(*measured.CHAIN, reason)


def defaults(
    settings: Settings, kind: Kind, *, unified: bool, kv_tokens: int, tp: int
) -> tuple[Default, ...]:
    """Return the default arguments of a plan's engines; `kv_tokens` is the pool of one engine."""
    found: list[Default] = []
    if unified and kind == "cuda":
        found += _mixed_steps(settings.engine_args)
    if settings.speculative_algorithm:
        found.append(_running(kind, kv_tokens, tp))
    return tuple(default for default in found if default.name not in settings.engine_args)


def _mixed_steps(given: Mapping[str, object]) -> Iterator[Default]:
    if any(given.get(name) for name in _NOT_MIXED):
        return
    best, own = measured.best_chunk(), measured.CHUNKS[0]
    why = (
        f"two engines kept {best.mean_40_ms:g} requests/s, against {own.mean_40_ms:g} of SGLang's"
        f" default, for prompts of 6000 tokens on H100 (mean gap ≤ 40 ms)"
    )
    yield Default("chunked_prefill_size", best.tokens, why, "unified")
    yield Default(
        "enable_mixed_chunk",
        True,
        f"a decode step rides on each chunk: longest gap ≤ 50 ms for {best.longest_50_ms:g}"
        f" requests/s, against {own.longest_50_ms:g}",
        "unified",
    )


def _running(kind: Kind, kv_tokens: int, tp: int) -> Default:
    fit = max(kv_tokens // TOKENS_PER_REQUEST, 1)
    largest = fit
    if kind == "cuda":
        largest = _LARGEST_GRAPH if tp < 4 else _LARGEST_GRAPH_FROM_TP_4
    limit = "" if fit <= largest else f", and {largest} is the largest batch in a CUDA graph"
    return Default(
        "max_running_requests",
        min(fit, largest),
        f"{kv_tokens} KV tokens, {TOKENS_PER_REQUEST} a request{limit}; SGLang's own limit with"
        f" EAGLE is {_SGLANG_SPECULATIVE_CAP}",
    )


def what_pd_gives_up() -> str:
    """Return the note that compares PD on two GPUs with two unified engines, as measured."""
    best, pd = measured.best_chunk(), measured.PD_ANSWERS_PER_S
    return (
        f"on two {measured.GPU}, UNIFIED_REPLICAS=2 took {best.mean_40_ms:g} requests/s where PD"
        f" took {pd:g} (prompts of 6000 tokens, mean gap ≤ 40 ms), and {best.mean_10_ms:g} against"
        f" {pd:g} at mean gaps ≤ 10 ms: PD is for steady tokens"
    )


def for_role(found: tuple[Default, ...], role: Role) -> dict[str, int | bool]:
    """Return the arguments among `found` of an engine of `role`."""
    return {one.name: one.value for one in found if one.role in (None, role)}
