"""Where prompts come from when no data set can be reached: templates, and the target itself.

A chat model asked to continue the beginning of a *user's* turn writes prompts of the kind it was
tuned on (Magpie: Xu et al. 2024, arXiv 2406.08464). Templates add tasks that it seldom thinks of.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tools.draft import corpus, tasks
from tools.draft.generation import Decoding, generate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tools.draft.corpus import Conversation
    from tools.draft.progress import Progress
    from tools.draft.target import Target


@dataclass(frozen=True, slots=True)
class Chat:
    """SmolLM2's chat format (ChatML) as token ids."""

    tokenizer: Any
    begin_id: int
    end_id: int
    system: str
    """What the chat template says when a request has no system message."""

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def opening(self, system: str) -> list[int]:
        """Return a conversation up to where the user starts to speak."""
        return self.encode(f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n")

    def asking(self, system: str, text: str) -> list[int]:
        """Return a conversation up to where the first answer starts."""
        user = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        return self.encode(f"<|im_start|>system\n{system}<|im_end|>\n{user}")

    @property
    def answering(self) -> list[int]:
        return self.encode("<|im_end|>\n<|im_start|>assistant\n")

    @property
    def next_user(self) -> list[int]:
        """What stands between an answer's end token and the user's next words."""
        return self.encode("\n<|im_start|>user\n")


def chat_of(tokenizer: Any) -> Chat:
    """Read the chat format off the tokenizer; refuse one that is not what ``Chat`` writes."""
    messages = [{"role": "user", "content": "Hello"}]
    whole = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    system = whole.removeprefix("<|im_start|>system\n").split("<|im_end|>", 1)[0]
    begin, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    chat = Chat(tokenizer, begin, end, system)
    if chat.asking(system, "Hello") != chat.encode(whole):
        raise ValueError(f"the chat template is not the ChatML this tool writes: {whole!r}")
    return chat


def everyday(chat: Chat) -> list[Conversation]:
    """Return the hand-written prompts; they are for evaluation only."""
    asked = (chat.asking(chat.system, text) for text in tasks.EVERYDAY)
    return [corpus.prompt(ids, "everyday") for ids in asked]


def templated(count: int, seed: int) -> Iterator[str]:
    """Yield ``count`` tasks filled with topics; duplicates are likely and not removed here."""
    chance = random.Random(f"templated {seed}")
    for _ in range(count):
        yield _filled(chance.choice(tasks.TASKS), chance)


def openings(count: int, seed: int) -> Iterator[str]:
    """Yield ``count`` beginnings of plain text, for completion without a chat format."""
    chance = random.Random(f"openings {seed}")
    for _ in range(count):
        yield _filled(chance.choice(tasks.OPENINGS), chance)


def _filled(template: str, chance: random.Random) -> str:
    words = {name: chance.choice(options) for name, options in tasks.SLOTS.items()}
    topic, other = chance.sample(tasks.TOPICS, 2)
    text = template.format(topic=topic, other=other, **words)
    return text[:1].upper() + text[1:] if template.startswith("{topic}") else text


def magpie(
    target: Target,
    chat: Chat,
    count: int,
    seed: int,
    batch: int,
    cache_tokens: int,
    progress: Progress,
) -> Iterator[str]:
    """Yield the readable ones of ``count`` user turns that the target writes itself."""
    chance = random.Random(f"magpie {seed}")
    decoding = Decoding(chat.end_id, max_new=80, min_p=0.02, batch=batch, cache_tokens=cache_tokens)
    for start in range(0, count, batch):
        size = min(batch, count - start)
        prefixes = [chat.opening(_system(chat, chance)) for _ in range(size)]
        turns = generate(target, prefixes, [1.0] * size, decoding, seed + start)
        yield from user_texts(chat, turns)
        progress.add(size)


def user_texts(chat: Chat, turns: Iterable[list[int]]) -> Iterator[str]:
    """Yield what is a whole, readable user turn."""
    for turn in turns:
        whole = turn[-1] == chat.end_id and chat.begin_id not in turn
        text = chat.tokenizer.decode(turn[:-1]).strip() if whole else ""
        if len(text) >= 8 and "\ufffd" not in text and "<|" not in text:
            yield text


def _system(chat: Chat, chance: random.Random) -> str:
    return chat.system if chance.random() < 0.75 else chance.choice(tasks.SYSTEMS)


def _turns(chance: random.Random) -> int:
    return 1 if chance.random() < 0.78 else 2


class Collector:
    """Takes texts in, drops duplicates and splits what is held out from what is trained on."""

    def __init__(self, chat: Chat, held_out_per_mille: int, seed: int):
        self.train: list[Conversation] = []
        self.held_out: list[Conversation] = []
        self._chat = chat
        self._per_mille = held_out_per_mille
        self._chance = random.Random(f"collector {seed}")
        self._known = {corpus.prompt_key(text) for text in tasks.EVERYDAY}

    def add(self, text: str, kind: str) -> None:
        """Take one user text, or for the kind ``raw`` the beginning of a plain text."""
        key = corpus.prompt_key(text)
        if key in self._known:
            return
        self._known.add(key)
        turns = 1 if kind == "raw" else _turns(self._chance)
        system = _system(self._chat, self._chance)
        raw = kind == "raw"
        ids = self._chat.encode(text) if raw else self._chat.asking(system, text)
        held_out = corpus.is_held_out(text, self._per_mille)
        (self.held_out if held_out else self.train).append(corpus.prompt(ids, kind, turns))
