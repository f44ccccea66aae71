"""Conversations as flat arrays on disk, and what decides which of them are held out."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Conversation:
    """Token ids with a mark on each that the target wrote as an answer."""

    ids: npt.NDArray[np.int32]
    answer: npt.NDArray[np.bool_]
    kind: str
    """Where the prompt came from: magpie, templated, raw or everyday."""
    turns: int = 1
    """How many answers it shall have."""


def prompt_key(text: str) -> int:
    """Return 64 bits that are equal for texts that differ in case and white space only."""
    plain = " ".join(text.lower().split())
    return int.from_bytes(hashlib.blake2b(plain.encode(), digest_size=8).digest(), "big")


def is_held_out(text: str, per_mille: int) -> bool:
    """Decide by the prompt alone, so that no run and no order of runs can mix the two sets."""
    return prompt_key(text) % 1000 < per_mille


def prompt(ids: list[int], kind: str, turns: int = 1) -> Conversation:
    """Return a conversation that waits for its first answer."""
    return Conversation(np.array(ids, np.int32), np.zeros(len(ids), np.bool_), kind, turns)


def save(conversations: Iterable[Conversation], path: Path) -> None:
    """Write conversations so that the file is whole or absent (numpy's .npz, no pickles)."""
    rows = list(conversations)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(
            file,
            ids=np.concatenate([row.ids for row in rows]),
            answer=np.concatenate([row.answer for row in rows]),
            lengths=np.array([len(row.ids) for row in rows], dtype=np.int32),
            kinds=np.array([row.kind for row in rows], dtype="U16"),
            turns=np.array([row.turns for row in rows], dtype=np.int32),
        )
    os.replace(partial, path)


def load(path: Path) -> list[Conversation]:
    """Read what ``save`` wrote."""
    with np.load(path) as file:
        ends = np.cumsum(file["lengths"])[:-1]
        ids = np.split(file["ids"], ends)
        answers = np.split(file["answer"], ends)
        kinds, turns = file["kinds"].tolist(), file["turns"].tolist()
    return [
        Conversation(i, a, kind, turn)
        for i, a, kind, turn in zip(ids, answers, kinds, turns, strict=True)
    ]
