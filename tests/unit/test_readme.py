"""The README says what the code says; its examples are at least well-formed."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.routing import Route

from pd_eagle import serve
from pd_eagle.http.app import make_app
from pd_eagle.http.unserved import UNSERVED
from pd_eagle.plan.setting_groups import TABLE
from tools.readme import README, with_gpus, with_settings

ROOT = Path(__file__).parents[2]
TEXT = README.read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.M | re.S)


def blocks(language: str) -> list[str]:
    found = [text for name, text in BLOCKS if name == language]
    assert found
    return found


def chapter(title: str) -> str:
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_settings_are_those_of_the_code() -> None:
    assert with_settings(TEXT) == TEXT, "python -m tools.readme writes them"


def test_the_words_on_gpus_are_those_of_the_results() -> None:
    assert with_gpus(TEXT) == TEXT, "python -m tools.readme writes them"


@pytest.mark.parametrize("block", blocks("python"))
def test_python_compiles(block: str) -> None:
    compile(block, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("block", blocks("sh"))
def test_shell_parses(block: str) -> None:
    subprocess.run(["sh", "-n"], input=block.encode(), check=True)


@pytest.mark.parametrize("block", blocks("json"))
def test_json_parses(block: str) -> None:
    json.loads(block)


def test_every_variable_in_an_example_is_a_setting() -> None:
    named = {name for block in blocks("sh") for name in re.findall(r"\b([A-Z_]{4,})=", block)}
    assert named - {"ARGS", "GPUS", "PYTHON"} <= {row.variable for row in TABLE}


def test_every_make_command_is_a_target() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    named = re.findall(r"\bmake (?:[A-Z]+=\S+ )?([a-z-]+)\b", "\n".join(blocks("sh")))
    assert set(named) <= targets


def test_every_route_is_named() -> None:
    app = make_app(cast("Any", SimpleNamespace(max_body_memory_bytes=0, operations=None)))
    paths = {route.path for route in app.routes if isinstance(route, Route)} - UNSERVED.keys()
    named = set(re.findall(r"`(?:GET|POST) (/\S*)`", chapter("HTTP")))
    assert {path for path in paths if "{" not in path} == named


def test_the_exit_codes_are_those_of_the_server() -> None:
    named = [int(code) for code in re.findall(r"^\| (\d) \|", chapter("Exit codes"), re.M)]
    assert named == sorted(value for name, value in vars(serve).items() if name.startswith("EXIT_"))


def test_a_requests_life_names_modules_that_exist_in_eight_steps() -> None:
    life = chapter("A request's life")
    assert len(re.findall(r"^\d\. ", life, re.M)) == 8
    missing = [
        name
        for name in re.findall(r"`(\w+\.py)`", life)
        if not list((ROOT / "pd_eagle").rglob(name))
    ]
    assert not missing


def test_every_test_folder_is_named_and_exists() -> None:
    assert all((ROOT / name).is_dir() for name in re.findall(r"`(tests/\w+)`", TEXT))
