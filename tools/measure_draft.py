"""Measure a draft in SGLang itself: the everyday prompts through ``PDEngine``, greedy.

Users never need it: it checks a draft that `tools.train_draft` made.

    python -m tools.measure_draft --tree 2,6,10 --tree 3,4,16 --json measured.json

Tokens per verification are SGLang's own count (``spec_accept_length``); the times are those of the
machine at hand and nothing else. A tree of 0,0,0 is no speculation.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import compact_json
from pd_eagle import PDEngine
from tools.draft.tasks import EVERYDAY


def settings(args: argparse.Namespace, tree: tuple[int, int, int]) -> dict[str, Any]:
    """Return what ``PDEngine`` is told for one tree."""
    chosen: dict[str, Any] = {"pd_mode": args.pd_mode}
    if args.model:
        chosen["model_path"] = args.model
    if tree[0]:
        chosen |= {
            "speculative_algorithm": "EAGLE",
            "speculative_draft_model_path": str(args.draft),
            "speculative_num_steps": tree[0],
            "speculative_eagle_topk": tree[1],
            "speculative_num_draft_tokens": tree[2],
        }
    return chosen


def measure(args: argparse.Namespace, tree: tuple[int, int, int]) -> dict[str, Any]:
    """Answer all prompts, ``--at-once`` at a time; return SGLang's counts and the time."""
    chats = [[{"role": "user", "content": text}] for text in EVERYDAY[: args.prompts]]
    limits = {"temperature": 0, "max_new_tokens": args.max_new}
    with PDEngine(**settings(args, tree)) as engine:
        engine.generate(messages=chats[:1], sampling_params=limits)
        started = time.monotonic()
        results: list[dict[str, Any]] = []
        for start in range(0, len(chats), args.at_once):
            part = chats[start : start + args.at_once]
            results += engine.generate(messages=part, sampling_params=limits)
        spent_s = time.monotonic() - started
        mode = engine.plan.mode
    return {"tree": tree, "mode": str(mode), "spent_s": round(spent_s, 2), **_counted(results)}


def _counted(results: list[dict[str, Any]]) -> dict[str, Any]:
    infos = [result["meta_info"] for result in results]
    tokens = sum(info["completion_tokens"] for info in infos)
    verifications = sum(info.get("spec_verify_ct") or 0 for info in infos)
    lengths = [info.get("spec_accept_length") or 0.0 for info in infos]
    return {
        "tokens": tokens,
        "verifications": verifications,
        "tokens_per_verification": round(tokens / verifications, 4) if verifications else None,
        "mean_of_requests": round(sum(lengths) / len(lengths), 4) if verifications else None,
    }


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    p = argparse.ArgumentParser(prog="measure_draft", description="Measure a draft in SGLang.")
    p.add_argument("--draft", type=Path, default=Path("pd_eagle/demo/draft"))
    p.add_argument("--model", help="default: the embedded model, where there is no GPU")
    p.add_argument("--tree", action="append", required=True, help="steps,topk,tokens")
    p.add_argument("--pd-mode", choices=("on", "off"), default="off")
    p.add_argument("--prompts", type=int, default=len(EVERYDAY))
    p.add_argument("--at-once", type=int, default=1)
    p.add_argument("--max-new", type=int, default=256)
    p.add_argument("--json", type=Path)
    return p.parse_args()


def main() -> None:
    """Measure every tree and print one line each."""
    args = arguments()
    runs = []
    for text in args.tree:
        steps, topk, tokens = (int(part) for part in text.split(","))
        runs.append(measure(args, (steps, topk, tokens)))
        print(json.dumps(runs[-1]), flush=True)
    report = {
        "sglang": version("sglang"),
        "machine": platform.machine(),
        "prompts": args.prompts,
        "at_once": args.at_once,
        "max_new": args.max_new,
        "runs": runs,
    }
    if args.json:
        compact_json.write(args.json, report)


if __name__ == "__main__":
    main()
