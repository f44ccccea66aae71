"""Real engines on the CPU platform: alone, and prefill and decode over both transfer backends."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine_process import EngineHost
from tests.tiny_models import tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(240)

GREEDY = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}
# 5 lengths, two with a shared prefix of 40, one repeated: cached, partly cached and new
PROMPTS = [[(7 * i + 3 * j) % 255 + 1 for j in range(5 + 11 * i)] for i in range(5)]
PROMPTS += [[*PROMPTS[4][:40], 9, 8, 7], PROMPTS[0]]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineHost]:
    with EngineHost(tmp_path_factory.mktemp("host") / "host.log") as host:
        yield host


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def unified_ids(host: EngineHost, model: Path) -> list[list[int]]:
    with host.engine(model_path=str(model)) as engine:
        return ids(engine.generate(requests()))


def requests(**more: Any) -> list[dict[str, Any]]:
    return [{"input_ids": p, "sampling_params": GREEDY, **more} for p in PROMPTS]


def ids(answers: list[dict[str, Any]]) -> list[list[int]]:
    return [answer["output_ids"] for answer in answers]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def pair_arguments(backend: str, port: int) -> tuple[dict[str, Any], dict[str, Any]]:
    shared = {
        "disaggregation_transfer_backend": backend,
        "disaggregation_bootstrap_port": port,
    }
    prefill = shared | {"disaggregation_mode": "prefill"}
    decode = shared | {
        "disaggregation_mode": "decode",
        "disaggregation_decode_retraction_backup": "cpu_tensor",
    }
    return prefill, decode


def test_answers_wander(unified_ids: list[list[int]]) -> None:
    assert all(len(answer) == 24 for answer in unified_ids)
    assert min(len(set(answer)) for answer in unified_ids) > 8
    assert unified_ids[0] == unified_ids[6]


@pytest.mark.parametrize("backend", ["nixl", "mooncake"])
def test_prefill_and_decode_give_the_unified_tokens(
    host: EngineHost, model: Path, unified_ids: list[list[int]], backend: str
) -> None:
    port = free_port()
    prefill, decode = pair_arguments(backend, port)
    with (
        host.engine(model_path=str(model), **prefill) as first,
        host.engine(model_path=str(model), **decode) as second,
    ):
        rooms = requests(bootstrap_host="127.0.0.1", bootstrap_port=port)
        rooms = [request | {"bootstrap_room": 100 + i} for i, request in enumerate(rooms)]
        first.wait_ready()
        second.submit(rooms)
        first.generate(rooms)
        assert ids(second.answers()) == unified_ids
