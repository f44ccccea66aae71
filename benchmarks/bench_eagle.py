"""EAGLE on real engines on this machine: is it lossless, how much is accepted, is it faster?

    python -m benchmarks.bench_eagle lossless    # (steps, topk, draft tokens) x mode x batch size
    python -m benchmarks.bench_eagle rounding    # where bf16 first differs, and how close it was
    python -m benchmarks.bench_eagle speed       # tokens/s against EAGLE off, and what to choose

Every mode writes one JSON file to benchmarks/results. `lossless` exits with 1 if a token differs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.asking import Answers, ask
from benchmarks.provenance import conclude, log_to_file, tell
from pd_eagle import PDEngine, demo
from pd_eagle.workers.engine import load_tokenizer
from tests.tiny_models import tiny_draft, tiny_model
from tools.draft.tasks import EVERYDAY

Tree = tuple[int, int, int]

TREES: list[Tree] = [(1, 1, 2), (2, 1, 3), (2, 6, 10), (3, 4, 16)]
MODES = ("unified", "nixl", "mooncake")
BATCHES = (1, 8)
PROMPTS = 16
NEW_TOKENS = 256
DEFAULT_TREE: Tree = (2, 6, 10)


@dataclass(frozen=True)
class Model:
    """A target with its draft, and prompts (token ids) that neither was trained on."""

    name: str
    settings: dict[str, Any]
    draft: dict[str, Any]
    prompts: list[list[int]]


def tiny(folder: Path) -> Model:
    """A random model of two layers with a draft trained on its own answers."""
    target = tiny_model(folder / "target")
    draft = tiny_draft(folder / "draft", target)
    prompts = [[1 + (37 * i + 11 * j) % 255 for j in range(4 + i)] for i in range(PROMPTS)]
    return Model(
        "tiny", {"model_path": str(target)}, {"speculative_draft_model_path": str(draft)}, prompts
    )


def embedded(_: Path) -> Model:
    """The embedded model with its draft; questions that the draft never saw."""
    tokenizer = load_tokenizer({"model_path": str(demo.model_dir())})
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for text in EVERYDAY[:PROMPTS]
    ]
    return Model("embedded", {}, {}, prompts)


MODELS = {"tiny": tiny, "embedded": embedded}


def start(model: Model, mode: str, tree: Tree | None, dtype: str) -> PDEngine:
    """Start `model` with EAGLE at `tree`, or without EAGLE."""
    chosen = dict(model.settings)
    if mode == "unified":
        chosen |= {"pd_mode": "off"}
    else:
        chosen |= {"pd_mode": "on", "disagg_transfer_backend": mode}
    if tree:
        chosen |= model.draft | {
            "speculative_algorithm": "EAGLE",
            "speculative_num_steps": tree[0],
            "speculative_eagle_topk": tree[1],
            "speculative_num_draft_tokens": tree[2],
        }
    return PDEngine(engine_args={"dtype": dtype}, **chosen)


def first_difference(one: list[int], other: list[int]) -> int | None:
    """Return where two answers first differ; None if they are equal."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return None if len(one) == len(other) else min(len(one), len(other))


def differences(answers: Answers, reference: Answers) -> list[int | None]:
    return [first_difference(a, b) for a, b in zip(answers.ids, reference.ids, strict=True)]


# --- lossless


def lossless(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Compare EAGLE with the plain unified engine, in float32, token for token."""
    names = ["tiny"] if arguments.quick else list(MODELS)
    modes, trees = (MODES[:2], TREES[2:3]) if arguments.quick else (MODES, TREES)
    new_tokens = 32 if arguments.quick else NEW_TOKENS
    runs = []
    for name in names:
        model = MODELS[name](folder)
        with start(model, "unified", None, "float32") as engine:
            plain = {batch: ask(engine, model.prompts, batch, new_tokens) for batch in BATCHES}
        reference = plain[1]
        runs.append(_run(name, "unified", None, 8, plain[8], reference))
        for mode, tree in product(modes, trees):
            with start(model, mode, tree, "float32") as engine:
                for batch in BATCHES:
                    answers = ask(engine, model.prompts, batch, new_tokens)
                    runs.append(_run(name, mode, tree, batch, answers, reference))
    differing = sum(run["prompts"] - run["equal"] for run in runs)
    summary = {
        "runs": len(runs),
        "answers": sum(run["prompts"] for run in runs),
        "tokens": sum(run["tokens"] for run in runs),
        "answers_that_differ": differing,
        "new_tokens_at_most": new_tokens,
        "dtype": "float32",
    }
    return {"summary": summary, "runs": runs, "wrong": differing}


def _run(
    model: str, mode: str, tree: Tree | None, batch: int, answers: Answers, reference: Answers
) -> dict[str, Any]:
    places = differences(answers, reference)
    run = {
        "model": model,
        "mode": mode,
        "tree": tree,
        "batch": batch,
        "prompts": len(places),
        "equal": places.count(None),
        "tokens": answers.tokens,
        "first_differences": places,
        "tokens_per_verification": answers.tokens_per_verification,
    }
    tell(
        f"{model} {mode} {tree or 'no EAGLE'} batch {batch}: {run['equal']} of {run['prompts']} "
        f"equal, {answers.tokens} tokens in {answers.seconds:.0f} s, "
        f"{run['tokens_per_verification']} tokens a verification"
    )
    return run


# --- rounding


def rounding(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Count in bf16 where answers first differ from the plain engine's at batch 1.

    The plain engine at batch 8 is counted too: without EAGLE, only with other batch shapes. `gap`
    is the difference of the two best log probabilities where they differ; rounding can flip near
    ties.
    """
    model = MODELS["tiny" if arguments.quick else "embedded"](folder)
    reference, others = _rounded(model, 32 if arguments.quick else NEW_TOKENS)
    gaps = [gaps_of(meta) for meta in reference.meta]
    runs = []
    for (tree, batch), answers in others.items():
        run = _run(model.name, "unified", tree, batch, answers, reference)
        run["gaps_at_first_difference"] = _gaps_at(run["first_differences"], gaps)
        runs.append(run)
    everywhere = sorted(gap for answer in gaps for gap in answer)
    differing = {
        f"{run['tree'] or 'no EAGLE'} batch {run['batch']}": run["prompts"] - run["equal"]
        for run in runs
    }
    summary = {
        "dtype": "bfloat16",
        "prompts": len(model.prompts),
        "differing": differing,
        "median_gap_of_all_tokens": round(statistics.median(everywhere), 4),
        "largest_gap_at_a_first_difference": max(
            (gap for run in runs for gap in run["gaps_at_first_difference"]), default=None
        ),
    }
    return {"summary": summary, "runs": runs, "wrong": 0}


def _rounded(
    model: Model, new_tokens: int
) -> tuple[Answers, dict[tuple[Tree | None, int], Answers]]:
    """Return the plain answers at batch 1, and those with another batch size or with EAGLE."""
    top = {"return_logprob": True, "top_logprobs_num": 2}
    others: dict[tuple[Tree | None, int], Answers] = {}
    with start(model, "unified", None, "bfloat16") as engine:
        reference = ask(engine, model.prompts, 1, new_tokens, **top)
        others[None, 8] = ask(engine, model.prompts, 8, new_tokens)
    with start(model, "unified", DEFAULT_TREE, "bfloat16") as engine:
        for batch in BATCHES:
            others[DEFAULT_TREE, batch] = ask(engine, model.prompts, batch, new_tokens)
    return reference, others


def _gaps_at(places: list[int | None], gaps: list[list[float]]) -> list[float]:
    return [
        round(of_answer[place], 4)
        for place, of_answer in zip(places, gaps, strict=True)
        if place is not None and place < len(of_answer)
    ]


def gaps_of(meta: dict[str, Any]) -> list[float]:
    """Return the log probability gap between the two best tokens (nats), for each token."""
    return [best[0] - second[0] for best, second in meta["output_top_logprobs"]]


# --- speed


def speed(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure tokens/s with and without EAGLE: all engines live, asked in turn, in bf16."""
    model = MODELS["tiny" if arguments.quick else "embedded"](folder)
    trees = [DEFAULT_TREE] if arguments.quick else arguments.tree or TREES
    new_tokens, rounds = (16, 1) if arguments.quick else (96, arguments.rounds)
    runs: list[dict[str, Any]] = []
    with ExitStack() as stack:
        engines = {
            tree: stack.enter_context(start(model, "unified", tree, "bfloat16"))
            for tree in (None, *trees)
        }
        for engine in engines.values():
            ask(engine, model.prompts[:2], 2, 8)
        for number, batch in product(range(rounds), (1, 4, 16)):
            for tree, engine in engines.items():
                answers = ask(engine, model.prompts, batch, new_tokens)
                runs.append({"round": number, "tree": tree, "batch": batch} | answers.speed())
                tell(f"round {number + 1} of {rounds}: {runs[-1]}")
    table = [_row(runs, batch, tree) for batch, tree in product((1, 4, 16), trees)]
    summary = {"dtype": "bfloat16", "table": table, "advice": advice(table)}
    return {"summary": summary, "runs": runs, "wrong": 0}


def _row(runs: list[dict[str, Any]], batch: int, tree: Tree) -> dict[str, Any]:
    def median(of: Tree | None, what: str) -> float:
        found = [run[what] for run in runs if run["tree"] == of and run["batch"] == batch]
        return float(statistics.median(found))

    plain, eagle = median(None, "tokens_per_s"), median(tree, "tokens_per_s")
    return {
        "batch": batch,
        "tree": tree,
        "tokens_per_s_without": plain,
        "tokens_per_s_with": eagle,
        "ratio": round(eagle / plain, 3),
        "tokens_per_verification": median(tree, "tokens_per_verification"),
    }


def advice(table: list[dict[str, Any]]) -> list[str]:
    """Return the recommended settings for each batch size, with the reason."""
    said = []
    for batch in sorted({row["batch"] for row in table}):
        best = max((row for row in table if row["batch"] == batch), key=lambda row: row["ratio"])
        steps, topk, tokens = best["tree"]
        if best["ratio"] > 1:
            said.append(
                f"batch {batch}: SPECULATIVE_NUM_STEPS={steps} SPECULATIVE_EAGLE_TOPK={topk} "
                f"SPECULATIVE_NUM_DRAFT_TOKENS={tokens}: {best['ratio']} times the tokens/s of no "
                f"EAGLE, {best['tokens_per_verification']} tokens a verification"
            )
        else:
            said.append(
                f"batch {batch}: leave EAGLE off: the best tree, {steps},{topk},{tokens}, gives "
                f"{best['ratio']} times the tokens/s, though {best['tokens_per_verification']} "
                "tokens a verification"
            )
    return said


PARTS = {"lossless": lossless, "rounding": rounding, "speed": speed}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument(
        "--tree",
        action="append",
        type=lambda text: tuple(map(int, text.split(","))),
        help="steps,topk,tokens for `speed`; may be given again",
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds of `speed`")
    parser.add_argument("--quick", action="store_true", help="a smoke run; its file is not kept")
    arguments = parser.parse_args()
    log_to_file("bench_eagle")
    with tempfile.TemporaryDirectory() as folder:
        result = PARTS[arguments.part](arguments, Path(folder))
    return conclude(f"eagle_{arguments.part}", result, arguments)


if __name__ == "__main__":
    sys.exit(main())
