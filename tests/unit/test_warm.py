"""`pd-eagle warm`: which batches it asks for, what it says, and that a CPU needs none of it."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import pytest

from pd_eagle import cli, warm
from pd_eagle.plan import devices
from pd_eagle.plan.devices import Device, Inventory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENVIRON = {"MODEL_PATH": "Qwen/Qwen2.5-7B-Instruct"}


class Engine:
    """Stands in for `PDEngine` on two decode engines; counts what is asked at once."""

    started: ClassVar[list[Engine]] = []

    def __init__(self, **settings: object) -> None:
        self.settings = settings
        self.asked: list[tuple[int, dict[str, Any]]] = []
        self.plan = SimpleNamespace(serving=("decode-0", "decode-1"))
        self.started.append(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def health(self) -> dict[str, Any]:
        return {"workers": [{"max_running": None}, {"max_running": 19}]}

    async def async_generate(
        self, input_ids: list[int], sampling_params: dict[str, Any]
    ) -> dict[str, Any]:
        self.asked.append((len(input_ids), sampling_params))
        return {}


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Engine]]:
    gpus = tuple(Device(i, "NVIDIA H100", f"GPU-{i}", 80 * 2**30, (9, 0)) for i in range(2))
    monkeypatch.setattr(warm, "PDEngine", Engine)
    monkeypatch.setattr(devices, "discover", lambda *_: Inventory("cuda", gpus, "two"))
    yield Engine.started
    Engine.started.clear()


def test_every_size_of_batch_is_asked_of_every_engine_in_both_starts(
    engines: list[Engine], tmp_path: Path
) -> None:
    environ = ENVIRON | {"SGLANG_CACHE_DIR": str(tmp_path)}
    (tmp_path / "kept").write_bytes(bytes(2_000_000))
    said: list[str] = []
    report = warm.run(environ, said.append)
    assert report is not None
    first, again = engines
    assert first.settings == {"model_path": ENVIRON["MODEL_PATH"]}
    assert first.asked == again.asked
    # Two engines that run up to 19 requests at once are asked 2, 4, 8, 16 and 32.
    greedy = [tokens for tokens, _ in first.asked[:62]]
    assert set(greedy[:46]) == set(warm.PROMPT_TOKENS)
    assert set(greedy[46:]) == {warm.PROMPT_TOKENS[0]}
    ways = [params for _, params in first.asked[62:]]
    assert [bool(params["temperature"]) for params in ways] == [True] * 4 + [False] * 4
    assert all(params["max_new_tokens"] == warm.NEW_TOKENS for params in ways)
    assert (report.files, report.mb) == ((1, 1), (2.0, 2.0))
    assert "again     ready after" in "\n".join(report.lines())
    assert said == [f"first: {report.first}"]


def test_the_command_writes_what_it_found(
    engines: list[Engine], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "warm.json"
    environ = ENVIRON | {"SGLANG_CACHE_DIR": str(tmp_path / "cache")}
    assert cli.main(["warm", "--json", str(file)], environ) == 0
    assert len(engines) == 2
    assert str(tmp_path / "cache") in capsys.readouterr().out
    assert json.loads(file.read_text())["files"] == [0, 0]


def test_a_cpu_has_nothing_to_warm(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "PDEngine", None)  # none is started
    file = tmp_path / "warm.json"
    assert cli.main(["warm", "--json", str(file)], {"DEVICE": "cpu"}) == 0
    assert "nothing to warm" in capsys.readouterr().out
    assert json.loads(file.read_text()) is None


def test_a_wrong_setting_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["warm"], {"TP_SIZE": "some"}) == cli.REFUSED
    assert "TP_SIZE" in capsys.readouterr().err
