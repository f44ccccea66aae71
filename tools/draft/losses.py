"""What the draft is trained for: the target's features and distribution, some steps deep.

Knows nothing of optimisers or files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from tools.draft.model import Draft
    from tools.draft.target import Target


@dataclass(frozen=True, slots=True)
class Objective:
    """Weights of the loss. EAGLE's own are feature 1, token 0.1, noise 0.1, one step."""

    depth: int
    """Steps unrolled on the draft's own guesses: HASS (2408.15766), EAGLE-3 (2503.01840)."""
    decay: float
    """Each deeper step counts this much of the one before."""
    feature: float
    token: float
    noise: float
    """Half the width of the uniform noise on true features, in units of their RMS."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded conversations: ``ids`` [b, n], ``answer`` [b, n] false on padding."""

    ids: Tensor
    answer: Tensor


@dataclass(frozen=True, slots=True)
class Report:
    """Means over what counted, one entry a step."""

    loss: Tensor
    divergence: Tensor
    feature: Tensor
    agreement: Tensor
    """How often the draft's first choice is the target's."""


def unroll(draft: Draft, target: Target, ids: Tensor, features: Tensor, depth: int) -> list[Tensor]:
    """Return the guesses of every root at every depth, [b, n, hidden] each.

    Entry ``j`` at root ``t`` guesses ``h[t+1+j]`` with the tokens up to ``x[t+1+j]`` known; what it
    reads past the end of a row wraps around and must not be used.
    """
    n = ids.shape[1]
    roots = torch.arange(n, device=ids.device)
    seen = roots[None] <= roots[:, None]
    embeds = F.embedding(ids, target.embed).to(features.dtype)
    guess, memory = draft.read(embeds.roll(-1, dims=1), features, seen)
    guesses = [guess]
    for j in range(1, depth):
        tokens = embeds.roll(-1 - j, dims=1)[:, :, None]
        deeper, memory = draft.extend(tokens, guesses[-1][:, :, None], roots + j, memory)
        guesses.append(deeper[:, :, 0])
    return guesses


class _Divergence(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """KL(target || draft) through a frozen head, in chunks of rows.

    The gradient is made on the way forward, so that 49k logits a row never all exist at once.
    """

    @staticmethod
    def forward(
        ctx: Any, guesses: Tensor, truths: Tensor, weights: Tensor, head: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take ``guesses`` [depth, rows, hidden] and ``weights`` [depth, rows]; sum, weighted."""
        gradient = torch.empty_like(guesses, dtype=torch.float32)
        totals = torch.zeros(len(guesses), device=guesses.device)
        hits = torch.zeros_like(totals)
        for start in range(0, len(truths), chunk):
            part = slice(start, start + chunk)
            teacher = (truths[part].to(head.dtype) @ head.T).float()
            first = teacher.argmax(dim=-1)
            own = teacher.log_softmax(dim=-1)
            teacher = own.exp()
            negative_entropy = torch.einsum("nv,nv->n", teacher, own)
            del own
            for j, weight in enumerate(weights[:, part]):
                logits = guesses[j, part].to(head.dtype) @ head.T
                own = logits.log_softmax(dim=-1, dtype=torch.float32)
                hits[j] += ((logits.argmax(dim=-1) == first) * (weight > 0)).sum()
                divergence = negative_entropy - torch.einsum("nv,nv->n", teacher, own)
                totals[j] += (divergence * weight).sum()
                wrong = own.exp_().sub_(teacher).to(head.dtype)
                gradient[j, part] = (wrong @ head).float() * weight[:, None]
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(totals, hits)
        return totals.sum(), totals, hits

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad, None, None, None, None


def loss(
    draft: Draft, target: Target, batch: Batch, objective: Objective, seed: int, chunk: int
) -> Report:
    """Return the loss of one batch; only ``Report.loss`` carries a gradient."""
    positions = torch.arange(batch.ids.shape[1], device=batch.ids.device)[None]
    features = target.hidden(batch.ids, positions)
    noisy = _noisy(features, objective.noise, seed)
    half = target.embed.dtype
    with torch.autocast(features.device.type, half, enabled=half != torch.float32):
        guesses = unroll(draft, target, batch.ids, noisy, objective.depth)
    place, valid = _aligned(batch.answer, objective.depth)
    rows = place.nonzero(as_tuple=True)
    truths, counted = features[rows], valid[:, rows[0], rows[1]]
    picked = torch.stack([g.roll(1 + j, dims=1)[rows] for j, g in enumerate(guesses)]).float()
    decay = objective.decay ** torch.arange(objective.depth, device=place.device)
    counts = counted.sum(dim=1).clamp(min=1)
    weights = counted * (decay / counts)[:, None]
    token, totals, hits = _Divergence.apply(picked, truths, weights, target.head, chunk)
    feature = _feature_loss(picked, truths, weights)
    total = (objective.token * token + objective.feature * feature.sum()) / decay.sum()
    return Report(total, totals / decay, feature.detach() / decay, hits / counts)


def _noisy(features: Tensor, noise: float, seed: int) -> Tensor:
    if noise == 0:
        return features
    generator = torch.Generator(features.device).manual_seed(seed)
    size = features.float().pow(2).mean().sqrt() * noise
    uniform = torch.empty_like(features).uniform_(-1, 1, generator=generator)
    return features + uniform * size.to(features.dtype)


def _aligned(answer: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """Return the places ``p`` whose next token is an answer's, and at which depths they count.

    Depth ``j`` guesses ``h[p]`` from the root ``p - 1 - j``, which exists in decoding only when the
    token after it, ``x[p-j]``, is an answer's as well.
    """
    n = answer.shape[1]
    index = torch.arange(n, device=answer.device)
    follows = answer.roll(-1, dims=1) & (index < n - 1)
    rooted = [answer.roll(j, dims=1) & (index >= 1 + j) for j in range(depth)]
    return follows, torch.stack(rooted) & follows


def _feature_loss(guesses: Tensor, truths: Tensor, weights: Tensor) -> Tensor:
    """Smooth L1 over the hidden dimensions, as in EAGLE; one weighted sum per depth."""
    spread = F.smooth_l1_loss(
        guesses.float(), truths.float().expand(guesses.shape), reduction="none"
    )
    return (spread.mean(dim=-1) * weights).sum(dim=1)
