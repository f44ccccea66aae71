"""Few CUDA graphs, unless the user says otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pd_eagle.plan.graph_sizes import arguments

if TYPE_CHECKING:
    from pd_eagle.messages import Role

GIB = 2**30
H100 = 80 * GIB


@pytest.mark.parametrize(
    ("role", "names"),
    [
        ("unified", ["cuda_graph_bs_decode", "cuda_graph_bs_prefill"]),
        ("prefill", ["cuda_graph_bs_prefill"]),
        ("decode", ["cuda_graph_bs_decode"]),
    ],
)
def test_each_role_has_its_own_graphs(role: Role, names: list[str]) -> None:
    found = arguments(role, 1, H100, {})
    assert sorted(found) == names
    for sizes in found.values():
        assert sizes == sorted(set(sizes))
        assert len(sizes) <= 17


def test_sizes_end_at_the_largest_batch() -> None:
    given = {"chunked_prefill_size": 512, "max_running_requests": 100}
    found = arguments("unified", 1, H100, given)
    assert found["cuda_graph_bs_prefill"][-2:] == [448, 512]
    assert found["cuda_graph_bs_decode"][-3:] == [80, 96, 100]
    longest = arguments("unified", 1, H100, {"chunked_prefill_size": -1})  # no chunks at all
    assert longest["cuda_graph_bs_prefill"][-1] == 1024
    assert arguments("unified", 8, H100, {})["cuda_graph_bs_decode"][-1] == 512
    assert arguments("unified", 1, 180 * GIB, {})["cuda_graph_bs_decode"][-1] == 512
    assert arguments("unified", 1, H100, {})["cuda_graph_bs_decode"][-1] == 256


@pytest.mark.parametrize(
    "given",
    [
        {"cuda_graph_config": {"decode": {"backend": "full"}}},
        {"disable_cuda_graph": True},
        {"cuda_graph_bs_prefill": [8], "cuda_graph_max_bs_decode": 4},
        {"disable_prefill_cuda_graph": True, "disable_decode_cuda_graph": True},
    ],
)
def test_what_the_user_chose_stays(given: dict[str, object]) -> None:
    assert arguments("unified", 1, H100, given) == {}


def test_small_cards_and_speculation_keep_sglangs_sizes_for_decode() -> None:
    assert arguments("decode", 1, 24 * GIB, {}) == {}
    assert arguments("decode", 1, H100, {"speculative_algorithm": "EAGLE"}) == {}
