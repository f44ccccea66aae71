"""Batch sizes for which an engine captures CUDA graphs when it starts.

A graph saves the launch overhead of single kernels, which matters for short steps: prompts of up to
about a thousand tokens. SGLang 0.5.23 captures 58 sizes for prefill, up to 8,192 tokens, and 36 for
decode: 14.5 s of each start and restart of a 7B on an H100. These take about half of that. It knows
no plan and no settings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pd_eagle.messages import Role

# A batch is padded to the next size. Up to some 256 tokens a step takes as long as reading the
# weights does, so padding costs nothing there. Measured on an H100 (7B): prompts of 600 tokens take
# 27.5 ms padded to 768, 20.8 to 640; without a graph 24.0, as fast as with one from 900 tokens on.
_PREFILL = (16, 32, 64, 96, 128, 192, 256, 320, 384, 448, 512, 640, 768, 1024)
_DECODE = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 224, 256)
# SGLang captures up to 512 with TP 4 and more, and on the largest cards. It captures fewer sizes on
# small cards, where its own choice stays.
_LARGE_DECODE = (320, 384, 448, 512)
_LARGE_CARD_BYTES, _LARGEST_CARD_BYTES = 60 * 2**30, 160 * 2**30
# Engine arguments with which the user chooses the sizes.
_USER = ("cuda_graph_config", "disable_cuda_graph")
_USER_PREFILL = (
    "cuda_graph_bs_prefill",
    "cuda_graph_max_bs_prefill",
    "cuda_graph_backend_prefill",
    "disable_prefill_cuda_graph",
)
_USER_DECODE = (
    "cuda_graph_bs_decode",
    "cuda_graph_max_bs_decode",
    "cuda_graph_backend_decode",
    "disable_decode_cuda_graph",
    "disable_cuda_graph_padding",
)


def arguments(
    role: Role, tp: int, memory_bytes: int, given: Mapping[str, object]
) -> dict[str, list[int]]:
    """Return the arguments that choose the sizes for an engine with the arguments `given`.

    `memory_bytes` is one GPU's. SGLang itself captures no decode graphs in a prefill engine, and no
    prefill graphs in a decode engine.
    """
    found: dict[str, list[int]] = {}
    if any(given.get(name) is not None for name in _USER):
        return found
    if role != "decode" and not any(name in given for name in _USER_PREFILL):
        found["cuda_graph_bs_prefill"] = _up_to(given.get("chunked_prefill_size"), _PREFILL)
    # With speculation a step verifies several tokens of each request, so padding costs more: 8 % at
    # 104 requests (measured as above). SGLang's finer sizes stay.
    sglangs = "speculative_algorithm" in given or any(name in given for name in _USER_DECODE)
    if role != "prefill" and not sglangs and memory_bytes >= _LARGE_CARD_BYTES:
        more = tp >= 4 or memory_bytes >= _LARGEST_CARD_BYTES
        sizes = _DECODE + (_LARGE_DECODE if more else ())
        found["cuda_graph_bs_decode"] = _up_to(given.get("max_running_requests"), sizes)
    return found


def _up_to(limit: object, sizes: Iterable[int]) -> list[int]:
    """Return those sizes that are no larger than `limit`, and the limit itself if one is."""
    if not isinstance(limit, int) or limit <= 0:
        return list(sizes)
    kept = [size for size in sizes if size <= limit]
    return kept if limit >= max(sizes) or limit in kept else [*kept, limit]
