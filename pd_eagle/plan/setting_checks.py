"""Which settings go together: EAGLE's tree, adaptive speculation, and one kind of plan.

It sees values that are valid one by one, and knows nothing of where they came from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pd_eagle.plan.setting_groups import DEFAULTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

#: The settings of EAGLE's tree.
TREE = tuple(f"speculative_{name}" for name in ("num_steps", "eagle_topk", "num_draft_tokens"))
#: The settings that split the GPUs between prefill and decode.
SPLIT = ("prefill_replicas", "prefill_tp", "decode_replicas", "decode_tp")


def problems_between(values: dict[str, Any], bad: set[str]) -> Iterator[str]:
    """Yield a line for each value that contradicts another; fill in what follows from others.

    `bad` are the fields whose own value is wrong: they are compared with nothing.
    """
    for fields, check in _CHECKS:
        if bad.isdisjoint(fields):
            yield from check(values)


def _value(values: Mapping[str, Any], field: str) -> Any:
    return values.get(field, DEFAULTS[field])


def max_draft_tokens(num_steps: int, topk: int) -> int:
    """Return the size of the largest EAGLE tree, its root included.

    The first step offers `topk` candidates, every later one `topk` for each of `topk` branches;
    the root is the token that is already certain. SGLang 0.5.23, srt/speculative/eagle_utils.py,
    `organize_draft_results`: torch.topk(scores, num_draft_tokens - 1) fails beyond that.
    """
    return 1 + topk + (num_steps - 1) * topk * topk


def _tree(values: dict[str, Any]) -> Iterator[str]:
    steps, topk = (_value(values, f"speculative_{name}") for name in ("num_steps", "eagle_topk"))
    largest = max_draft_tokens(steps, topk)
    field = "speculative_num_draft_tokens"
    if field not in values:
        # With one branch the chain is the tree: SGLang itself forces steps + 1 there.
        values[field] = largest if topk == 1 else min(DEFAULTS[field], largest)
        return
    tokens, tree = values[field], f"SPECULATIVE_NUM_STEPS={steps}, SPECULATIVE_EAGLE_TOPK={topk}"
    if topk == 1 and tokens != largest:
        yield f"{field.upper()}={tokens!r}: wanted {largest}, steps + 1, with {tree}"
    elif tokens > largest:
        yield f"{field.upper()}={tokens!r}: wanted at most {largest}, the largest tree of {tree}"


# SGLang 0.5.23, srt/speculative/adaptive_spec_params.py, DEFAULT_ADAPTIVE_CONFIG.
_ADAPTIVE_STEPS = (0, 1, 3, 5, 7)


def _adaptive(values: dict[str, Any]) -> Iterator[str]:
    """SGLang only logs that it leaves adaptive speculation off; here that is an error."""
    if not _value(values, "speculative_adaptive"):
        if "speculative_adaptive_config" in values:
            yield (
                f"SPECULATIVE_ADAPTIVE_CONFIG={values['speculative_adaptive_config']!r}: "
                "wanted with SPECULATIVE_ADAPTIVE=true"
            )
        return
    topk, steps = (_value(values, f"speculative_{n}") for n in ("eagle_topk", "num_steps"))
    if topk != 1:
        yield f"SPECULATIVE_EAGLE_TOPK={topk!r}: wanted 1 with SPECULATIVE_ADAPTIVE"
    if "speculative_adaptive_config" not in values and steps not in _ADAPTIVE_STEPS:
        wanted = ", ".join(map(str, _ADAPTIVE_STEPS[1:]))
        yield f"SPECULATIVE_NUM_STEPS={steps!r}: wanted one of {wanted} with SPECULATIVE_ADAPTIVE"


def _one_kind_of_plan(values: dict[str, Any]) -> Iterator[str]:
    tp, mode = values.get("tp_size"), _value(values, "pd_mode")
    by_hand = [f.upper() for f in SPLIT if f in values]
    replicas = values.get("unified_replicas")
    other = "PD_MODE='on'" if mode == "on" else " and ".join(by_hand)
    if tp is not None and other:
        yield (
            f"TP_SIZE={tp!r}: wanted unset beside {other}: it asks for one unified engine;"
            " the TPs of PD are PREFILL_TP and DECODE_TP"
        )
    if replicas is not None and other:
        yield (
            f"UNIFIED_REPLICAS={replicas!r}: wanted unset beside {other}: it asks for unified"
            " engines, which do both; the replicas of PD are PREFILL_REPLICAS and DECODE_REPLICAS"
        )
    if mode == "off" and by_hand:
        yield f"PD_MODE='off': wanted on or auto beside {' and '.join(by_hand)}"


_CHECKS: tuple[tuple[frozenset[str], Callable[[dict[str, Any]], Iterator[str]]], ...] = (
    (
        frozenset(TREE),
        _tree,
    ),
    (
        frozenset(f"speculative_{n}" for n in ("eagle_topk", "num_steps", "adaptive")),
        _adaptive,
    ),
    (frozenset({"tp_size", "unified_replicas", "pd_mode", *SPLIT}), _one_kind_of_plan),
)


def warnings(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each setting that has no effect beside the others."""
    if "speculative_algorithm" not in values:
        idle = sorted(field.upper() for field in values if field.startswith("speculative_"))
        if idle:
            yield f"no effect while SPECULATIVE_ALGORITHM is unset: {', '.join(idle)}"
    # SGLang 0.5.23 ignores it there too: srt/speculative/eagle_worker_v2.py, `init_token_map`.
    elif values["speculative_algorithm"] == "EAGLE3" and "speculative_token_map" in values:
        yield "no effect with EAGLE3, whose draft brings its own: SPECULATIVE_TOKEN_MAP"
