"""Estimates which split of the GPUs has the highest throughput for given prompts and answers.

Measured rates are scaled by the model's shape: prefill by FLOPs (the weights a token is multiplied
with), decode by the bytes that a step reads. Queueing is ignored; `pd-eagle tune` measures. It
knows no settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pd_eagle.plan import measured
from pd_eagle.plan.models import load_shape
from pd_eagle.plan.splits import Split

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pd_eagle.plan.devices import Inventory
    from pd_eagle.plan.placement import Plan
    from pd_eagle.plan.shapes import ModelShape

#: The loosest latency level that was measured.
LOOSEST_GAP_S = 0.04
#: SGLang 0.5.23: the largest batch in a CUDA graph on 80 GB cards.
_LARGEST_BATCH = 256


@dataclass(frozen=True, slots=True)
class Traffic:
    """Tokens of a prompt and of an answer, and the highest mean time between tokens."""

    prompt: int
    answer: int
    gap_mean_s: float = LOOSEST_GAP_S

    def __str__(self) -> str:
        return (
            f"{self.prompt} prompt and {self.answer} answer tokens, mean gap at most"
            f" {self.gap_mean_s * 1000:g} ms"
        )


@dataclass(frozen=True, slots=True)
class Rates:
    """Throughput of the engines of each role, in answers a second."""

    split: Split
    prefill: float
    decode: float

    @property
    def requests_per_s(self) -> float:
        return min(self.prefill, self.decode)

    @property
    def bottleneck(self) -> str:
        return "prefill" if self.prefill < self.decode else "decode"

    def __str__(self) -> str:
        other = "decode" if self.bottleneck == "prefill" else "prefill"
        room = max(self.prefill, self.decode)
        return (
            f"{self.split}: about {self.requests_per_s:.3g} requests/s, as many as"
            f" {self.bottleneck} takes ({other}: {room:.3g})"
        )


@dataclass(frozen=True, slots=True)
class Advice:
    """The plan's own split, the one with the highest throughput, and the source of the rates."""

    traffic: Traffic
    planned: Rates | None
    best: Rates | None
    note: str

    @property
    def gain(self) -> float:
        """How many times the answers of the plan's own split."""
        if self.planned is None or self.best is None:
            return 1.0
        return self.best.requests_per_s / self.planned.requests_per_s

    def lines(self) -> Iterator[str]:
        yield f"traffic   {self.traffic}"
        if self.planned is not None:
            yield f"expected  {self.planned}"
        if self.best is not None and (self.planned is None or self.gain > _WORTH_IT):
            split = self.best.split
            times = f", {self.gain:.2g} × the plan's" if self.planned is not None else ""
            tp = f" PREFILL_TP={split.prefill_tp}" if split.prefill_tp > 1 else ""
            yield (
                f"advice    {self.best}{times}: PD_MODE=on"
                f" PREFILL_REPLICAS={split.prefill_replicas}{tp}"
                f" DECODE_REPLICAS={split.decode_replicas}"
            )
        elif self.planned is not None:
            yield "advice    no other split takes noticeably more of this traffic"
        yield f"          {self.note}"


#: Smaller gains are within the error of the estimate.
_WORTH_IT = 1.1


def advise(traffic: Traffic, plan: Plan, inventory: Inventory, shape: ModelShape) -> Advice:
    """Return the split with the highest throughput for `traffic`, beside that of `plan`."""
    if obstacle := _no_rates(inventory, shape):
        return Advice(traffic, None, None, obstacle)
    tp = min(worker.tp for worker in plan.workers)
    planned = None
    if plan.mode == "pd":
        planned = _rates(traffic, _split_of(plan), shape)
    engines = len(inventory.devices) // tp
    candidates = [
        _rates(traffic, Split(prefill, tp, engines - prefill, tp), shape)
        for prefill in range(1, engines)
    ]
    best = max(candidates, key=lambda rates: rates.requests_per_s, default=None)
    if best is not None and not best.requests_per_s:
        return Advice(
            traffic,
            planned if planned and planned.requests_per_s else None,
            None,
            f"no decode engine of TP {tp} is expected to keep this mean gap; a step alone takes"
            f" {_step_s(shape, 0, 0, tp) * 1000:.2g} ms: wanted a larger --gap-mean, a larger TP,"
            " or EAGLE",
        )
    return Advice(traffic, planned, best, _source(inventory))


def _no_rates(inventory: Inventory, shape: ModelShape) -> str | None:
    if not inventory.devices or not all(gpu.is_h100 for gpu in inventory.devices):
        return f"no rates were measured on {inventory}: those that are known are of {measured.GPU}"
    if shape.experts:
        return f"{shape.name} has experts: the rates that were measured are of a dense model"
    return None


def _source(inventory: Inventory) -> str:
    replicas = ""
    if len(inventory.devices) == 2:
        best = measured.best_chunk()
        replicas = (
            f" UNIFIED_REPLICAS=2 took {best.mean_40_ms:g} requests/s where PD took"
            f" {measured.PD_ANSWERS_PER_S:g} (6000 and 64 tokens, mean gap at most 40 ms)."
        )
    return f"Estimated from {measured.SOURCE}.{replicas} pd-eagle tune measures."


def _split_of(plan: Plan) -> Split:
    prefill, decode = plan.prefill, plan.decode
    return Split(len(prefill), prefill[0].tp, len(decode), decode[0].tp)


def _rates(traffic: Traffic, split: Split, shape: ModelShape) -> Rates:
    prefill = _prefill_tokens_per_s(shape, split.prefill_tp) / traffic.prompt
    decode = _decode_tokens_per_s(traffic, shape, split.decode_tp) / traffic.answer
    return Rates(split, split.prefill_replicas * prefill, split.decode_replicas * decode)


def _prefill_tokens_per_s(shape: ModelShape, tp: int) -> float:
    reference = load_shape(measured.MODEL)
    return measured.PREFILL_TOKENS_PER_S * tp * reference.layer_weights / shape.layer_weights


def _decode_tokens_per_s(traffic: Traffic, shape: ModelShape, tp: int) -> float:
    """Return the tokens/s of the largest batch whose step is short enough; 0 if none is."""
    context = traffic.prompt + traffic.answer // 2
    alone, with_one = (_step_s(shape, batch, context, tp) for batch in (0, 1))
    batch = min(_LARGEST_BATCH, (traffic.gap_mean_s - alone) / (with_one - alone))
    return batch / _step_s(shape, batch, context, tp) if batch >= 1 else 0.0


def _step_s(shape: ModelShape, batch: float, context: int, tp: int) -> float:
    """Return how long a decode step takes: its weights are read once, each request's KV once."""
    reference, (few, many) = load_shape(measured.MODEL), measured.STEPS
    a_request_ms = (many.gap_ms - few.gap_ms) / (many.at_once - few.at_once)
    alone_ms = few.gap_ms - few.at_once * a_request_ms
    weights = shape.weight_bytes / reference.weight_bytes
    kv = (shape.kv_bytes_per_token * context) / (reference.kv_bytes_per_token * few.context_tokens)
    return (alone_ms * weights + a_request_ms * kv * batch) / tp / 1000
