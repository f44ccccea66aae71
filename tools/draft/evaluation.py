"""How many tokens a verification yields: EAGLE's draft tree played against answers already known.

The tree is SGLang 0.5.23's (``select_top_k_tokens`` and ``organize_draft_results`` in
``srt/speculative``): every step keeps the ``topk`` likeliest paths, at the end the ``tokens - 1``
likeliest nodes of all steps are verified, and the target adds one token of its own. Only greedy
decoding is played: the answer's own tokens are what the target would have chosen.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from tools.draft.model import Memory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.draft.corpus import Conversation
    from tools.draft.model import Draft
    from tools.draft.progress import Progress
    from tools.draft.target import Target


@dataclass(frozen=True, slots=True)
class Tree:
    """SGLang's ``speculative_num_steps``, ``_eagle_topk`` and ``_num_draft_tokens``."""

    steps: int
    topk: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Beams:
    """The paths kept at each root: tensors [roots, topk], ``guesses`` [roots, topk, hidden]."""

    tokens: Tensor
    scores: Tensor
    right: Tensor
    """Whether the path is the answer's so far."""
    guesses: Tensor


@dataclass(slots=True)
class Tally:
    """Verifications and what they yielded."""

    verifications: int
    tokens: int
    accepted: Counter[int]
    """Verifications by the number of draft tokens accepted."""

    @property
    def accept_length(self) -> float:
        """Mean tokens a verification, the target's own too: SGLang's ``spec_accept_length``."""
        return self.tokens / max(1, self.verifications)


def accepted(
    draft: Draft, target: Target, ids: Tensor, features: Tensor, roots: Tensor, tree: Tree
) -> Tensor:
    """Return how many draft tokens each root would see accepted.

    ``ids`` [n] and ``features`` [n, hidden] are one whole conversation; a root ``t`` has ``x[t+1]``
    committed and drafts from ``x[t+2]`` on.
    """
    n = len(ids)
    seen = torch.arange(n, device=ids.device)[None] <= roots[:, None]
    embeds = F.embedding(ids.roll(-1), target.embed)
    guess, memory = draft.read(embeds[None], features[None], seen)
    wanted = torch.cat((ids, ids.new_full((tree.steps + 1,), -1)))
    guesses = guess[0, roots]
    scores, tokens = _likeliest(target, guesses, tree.topk)
    beams = Beams(
        tokens,
        scores,
        tokens == wanted[roots + 2][:, None],
        guesses[:, None].expand(-1, tree.topk, -1),
    )
    all_scores, all_right = [beams.scores], [beams.right]
    for step in range(1, tree.steps):
        beams, memory, grown, right = _grow(
            draft, target, beams, memory, roots + step, wanted[roots + 2 + step]
        )
        all_scores.append(grown)
        all_right.append(right)
    chosen = torch.cat(all_scores, dim=1).topk(tree.tokens - 1, dim=1).indices
    return torch.cat(all_right, dim=1).gather(1, chosen).sum(dim=1)


def _likeliest(target: Target, guesses: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    logits = target.logits(guesses.to(target.head.dtype)).float()
    scores, tokens = logits.softmax(dim=-1).topk(topk, dim=-1)
    return scores, tokens


def _grow(
    draft: Draft,
    target: Target,
    beams: Beams,
    memory: Memory,
    positions: Tensor,
    wanted: Tensor,
) -> tuple[Beams, Memory, Tensor, Tensor]:
    """Take every beam one token further; also return the scores and rightness of all children."""
    topk = beams.tokens.shape[1]
    embeds = F.embedding(beams.tokens, target.embed)
    guesses, memory = draft.extend(embeds[None], beams.guesses[None], positions, memory)
    scores, tokens = _likeliest(target, guesses[0], topk)
    grown = (beams.scores[..., None] * scores).flatten(1)
    tokens = tokens.flatten(1)
    right = (beams.right[..., None].expand_as(scores)).flatten(1) & (tokens == wanted[:, None])
    best, index = grown.topk(topk, dim=1)
    parent = index // topk
    wide = parent[..., None].expand(-1, -1, guesses.shape[-1])
    kept = Beams(tokens.gather(1, index), best, right.gather(1, index), guesses[0].gather(1, wide))
    return kept, _rebranched(memory, parent), grown, right


def _rebranched(memory: Memory, parent: Tensor) -> Memory:
    assert memory.branch_k is not None
    assert memory.branch_v is not None
    index = parent[None, None, :, :, None, None].expand(memory.branch_k.shape)
    return Memory(
        memory.k,
        memory.v,
        memory.seen,
        memory.branch_k.gather(3, index),
        memory.branch_v.gather(3, index),
    )


def spans(talk: Conversation) -> list[tuple[int, int]]:
    """Return [start, end) of every answer."""
    marks = [False, *talk.answer.tolist(), False]
    edges = [i for i in range(len(marks) - 1) if marks[i] != marks[i + 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))


def walk(accepts: dict[int, int], start: int, end: int, tally: Tally) -> None:
    """Play one answer: verify, commit what was accepted and one token more, go on behind it."""
    root = start - 1
    while root + 2 < end:
        left = end - root - 2
        count = min(accepts[root], left)
        tally.verifications += 1
        tally.accepted[count] += 1
        tally.tokens += min(count + 1, left)
        root += count + 1


def evaluate(
    draft: Draft,
    target: Target,
    talks: Sequence[Conversation],
    trees: Sequence[Tree],
    progress: Progress,
) -> dict[Tree, dict[str, Tally]]:
    """Play all answers with every tree; tallies by the prompt's kind, and ``all``."""
    result: dict[Tree, dict[str, Tally]] = {tree: {} for tree in trees}
    for talk in talks:
        ids = torch.from_numpy(talk.ids).long().to(target.device)
        positions = torch.arange(len(ids), device=target.device)[None]
        features = target.hidden(ids[None], positions)[0]
        places = [t for start, end in spans(talk) for t in range(max(start - 1, 0), end - 2)]
        roots = torch.tensor(places, device=target.device, dtype=torch.long)
        for tree in trees if places else ():
            with torch.no_grad():
                counts = accepted(draft, target, ids, features, roots, tree).tolist()
            known = dict(zip(places, counts, strict=True))
            for kind in ("all", talk.kind):
                tally = result[tree].setdefault(kind, Tally(0, 0, Counter()))
                for start, end in spans(talk):
                    walk(known, max(start, 1), end, tally)
        progress.add(1, _note(result))
    return result


def _note(result: dict[Tree, dict[str, Tally]]) -> str:
    return "  ".join(
        f"({t.steps},{t.topk},{t.tokens}) {by['all'].accept_length:.2f}"
        for t, by in result.items()
        if by
    )
