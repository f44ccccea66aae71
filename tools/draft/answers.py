"""Let the target answer prompts, and go on talking where a conversation shall have more turns."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tools.draft import tasks
from tools.draft.generation import Decoding, generate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.draft.corpus import Conversation
    from tools.draft.prompts import Chat
    from tools.draft.target import Target


@dataclass(frozen=True, slots=True)
class Answering:
    """How long answers may be and how warm they are."""

    max_new: int
    max_length: int
    batch: int
    cache_tokens: int
    greedy_share: float
    """Share of conversations answered at temperature 0; the others at 0.7 or 1.0."""


def answer(
    target: Target, chat: Chat, prompts: Sequence[Conversation], how: Answering, seed: int
) -> list[Conversation]:
    """Return the prompts with all their turns answered by the target."""
    chance = random.Random(f"answers {seed}")
    heat = [
        0.0 if chance.random() < how.greedy_share else chance.choice((0.7, 1.0)) for _ in prompts
    ]
    talks = list(prompts)
    open_rows = list(range(len(talks)))
    turn = 1
    while open_rows:
        _answer_rows(target, chat, talks, open_rows, heat, how, seed + turn)
        turn += 1
        open_rows = [i for i in open_rows if _goes_on(talks[i], turn, chat, how)]
        _ask_rows(target, chat, talks, open_rows, how, seed - turn, chance)
    return [_clipped(talk, how.max_length) for talk in talks]


def _goes_on(talk: Conversation, turn: int, chat: Chat, how: Answering) -> bool:
    room = len(talk.ids) + how.max_new // 2 < how.max_length
    return turn <= talk.turns and room and bool(talk.ids[-1] == chat.end_id)


def _answer_rows(
    target: Target,
    chat: Chat,
    talks: list[Conversation],
    rows: list[int],
    heat: list[float],
    how: Answering,
    seed: int,
) -> None:
    decoding = Decoding(chat.end_id, how.max_new, 0.0, how.batch, how.cache_tokens)
    prompts = [talks[i].ids.tolist() for i in rows]
    for i, new in zip(
        rows, generate(target, prompts, [heat[i] for i in rows], decoding, seed), strict=True
    ):
        talks[i] = _appended(talks[i], new, answer=True)


def _ask_rows(
    target: Target,
    chat: Chat,
    talks: list[Conversation],
    rows: list[int],
    how: Answering,
    seed: int,
    chance: random.Random,
) -> None:
    """Append the user's next turn: half of them stock phrases, half written by the target."""
    for i in rows:
        talks[i] = _appended(talks[i], chat.next_user, answer=False)
    decoding = Decoding(chat.end_id, 48, 0.05, how.batch, how.cache_tokens)
    prompts = [talks[i].ids.tolist() for i in rows]
    written = generate(target, prompts, [1.0] * len(rows), decoding, seed)
    for i, own in zip(rows, written, strict=True):
        usable = own[-1] == chat.end_id and chat.begin_id not in own and len(own) > 3
        stock = chat.encode(chance.choice(tasks.FOLLOW_UPS))
        question = own[:-1] if usable and chance.random() < 0.5 else stock
        talks[i] = _appended(talks[i], question + chat.answering, answer=False)


def _appended(talk: Conversation, ids: list[int], *, answer: bool) -> Conversation:
    return replace(
        talk,
        ids=np.concatenate((talk.ids, np.array(ids, np.int32))),
        answer=np.concatenate((talk.answer, np.full(len(ids), answer))),
    )


def _clipped(talk: Conversation, length: int) -> Conversation:
    return replace(talk, ids=talk.ids[:length], answer=talk.answer[:length])
