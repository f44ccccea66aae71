"""The training loop: seeded batches, a cosine schedule, checkpoints that resume exactly.

A step depends on nothing but the settings, its number and the state in the last checkpoint.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tools.draft.losses import Batch, Objective, loss
from tools.draft.model import fresh
from tools.draft.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tools.draft.corpus import Conversation
    from tools.draft.losses import Report
    from tools.draft.model import Draft
    from tools.draft.target import Target

ROUND_TO = 64
"""Row lengths are padded to multiples of this: few kernel shapes, little padding."""


@dataclass(frozen=True, slots=True)
class Training:
    """How long and how fast to train; part of the checkpoint, so that a resume cannot mix two."""

    steps: int
    batch_tokens: int
    learning_rate: float
    warmup: int
    seed: int
    objective: Objective
    logit_rows: int
    """Rows whose logits exist at once."""
    save_every_s: float = 60.0


def batches(
    talks: Sequence[Conversation], tokens: int, seed: int
) -> Iterator[tuple[int, list[int]]]:
    """Yield (padded length, indices) for one epoch, in an order that the seed alone decides.

    Rows of about one length share a batch, so that padding costs little.
    """
    chance = np.random.default_rng(seed)
    lengths = np.array([len(talk.ids) for talk in talks]) + chance.uniform(0, ROUND_TO, len(talks))
    groups: list[tuple[int, list[int]]] = []
    rows: list[int] = []
    for index in np.argsort(lengths).tolist():
        padded = -(-len(talks[index].ids) // ROUND_TO) * ROUND_TO
        if rows and padded * (len(rows) + 1) > tokens:
            groups.append((max(len(talks[i].ids) for i in rows), rows))
            rows = []
        rows.append(index)
    groups.append((max(len(talks[i].ids) for i in rows), rows))
    for group in chance.permutation(len(groups)).tolist():
        longest, rows = groups[group]
        yield -(-longest // ROUND_TO) * ROUND_TO, rows


def collate(
    talks: Sequence[Conversation], rows: list[int], length: int, device: torch.device
) -> Batch:
    """Pad some conversations to one length."""
    ids = np.zeros((len(rows), length), np.int64)
    answer = np.zeros((len(rows), length), np.bool_)
    for row, index in enumerate(rows):
        talk = talks[index]
        ids[row, : len(talk.ids)] = talk.ids
        answer[row, : len(talk.ids)] = talk.answer
    return Batch(torch.from_numpy(ids).to(device), torch.from_numpy(answer).to(device))


def _endless(talks: Sequence[Conversation], training: Training) -> Iterator[tuple[int, list[int]]]:
    epoch = 0
    while True:
        yield from batches(talks, training.batch_tokens, training.seed + epoch)
        epoch += 1


def rate(step: int, training: Training) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine to a hundredth."""
    if step < training.warmup:
        return training.learning_rate * (step + 1) / training.warmup
    share = (step - training.warmup) / max(1, training.steps - training.warmup)
    return training.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))


@dataclass(slots=True)
class State:
    """What a checkpoint holds."""

    draft: Draft
    optimizer: torch.optim.Optimizer
    step: int
    spent_s: float
    log: list[dict[str, float]]


def begin(target: Target, talks: Sequence[Conversation], training: Training) -> State:
    """Return the state before the first step; input sizes are measured on a few conversations."""
    rows = list(range(min(8, len(talks))))
    sample = collate(talks, rows, max(len(talks[i].ids) for i in rows), target.device)
    positions = torch.arange(sample.ids.shape[1], device=target.device)[None]
    features = target.hidden(sample.ids, positions)[sample.answer]
    embeds = target.embed[sample.ids[sample.answer]]
    sizes = [float(x.float().pow(2).mean().sqrt()) for x in (embeds, features)]
    draft = fresh(target.shape, training.seed, *sizes).to(target.device)
    return State(draft, _optimizer(draft, training), 0, 0.0, [])


def _optimizer(draft: Draft, training: Training) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        draft.parameters(), lr=training.learning_rate, betas=(0.9, 0.95), weight_decay=0.01
    )


def store(state: State, training: Training, path: Path) -> None:
    """Write a checkpoint that is whole or absent."""
    partial = path.with_suffix(".partial")
    content = {
        "draft": state.draft.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "step": state.step,
        "spent_s": state.spent_s,
        "log": state.log,
        "training": asdict(training),
    }
    torch.save(content, partial)
    os.replace(partial, path)


def resume(state: State, training: Training, path: Path) -> State:
    """Replace a fresh state by a checkpoint's; refuse one of another training."""
    content: dict[str, Any] = torch.load(path, map_location=state.draft.fc.weight.device)
    if content["training"] != asdict(training):
        raise ValueError(
            f"{path} belongs to another training: {content['training']}, wanted {asdict(training)};"
            " take another --work folder or remove the file"
        )
    state.draft.load_state_dict(content["draft"])
    state.optimizer.load_state_dict(content["optimizer"])
    return State(state.draft, state.optimizer, content["step"], content["spent_s"], content["log"])


def train(
    target: Target,
    talks: Sequence[Conversation],
    training: Training,
    path: Path,
    stop_at: int | None = None,
) -> State:
    """Train up to the last step (or ``stop_at``), from the checkpoint at ``path`` if any."""
    state = begin(target, talks, training)
    if path.exists():
        state = resume(state, training, path)
    last = training.steps if stop_at is None else min(stop_at, training.steps)
    progress = Progress("train", last - state.step) if state.step < last else None
    started = saved = time.monotonic()
    before_s = state.spent_s
    for number, (length, rows) in enumerate(_endless(talks, training)):
        if number >= last or progress is None:
            break
        if number < state.step:
            continue
        report = _step(target, state, collate(talks, rows, length, target.device), training)
        progress.add(1, _logged(state, report, training) if state.step % 25 == 0 else "")
        if time.monotonic() - saved > training.save_every_s:
            saved = time.monotonic()
            state.spent_s = before_s + saved - started
            store(state, training, path)
    state.spent_s = before_s + time.monotonic() - started
    store(state, training, path)
    return state


def _step(target: Target, state: State, batch: Batch, training: Training) -> Report:
    for group in state.optimizer.param_groups:
        group["lr"] = rate(state.step, training)
    noise_seed = training.seed + state.step
    report = loss(state.draft, target, batch, training.objective, noise_seed, training.logit_rows)
    report.loss.backward()
    torch.nn.utils.clip_grad_norm_(state.draft.parameters(), 1.0)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.step += 1
    return report


def _logged(state: State, report: Report, training: Training) -> str:
    entry = {"step": float(state.step), "loss": float(report.loss.detach())}
    for j in range(training.objective.depth):
        entry[f"divergence_{j + 1}"] = float(report.divergence[j])
        entry[f"feature_{j + 1}"] = float(report.feature[j])
        entry[f"agreement_{j + 1}"] = float(report.agreement[j])
    state.log.append(entry)
    return " ".join(f"{name} {value:.4g}" for name, value in entry.items())
