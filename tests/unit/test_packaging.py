"""What is declared is there: versions, pins, entry points; and no file names a machine."""

from __future__ import annotations

import configparser
import importlib.metadata
import pkgutil
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement

import pd_eagle
from pd_eagle.plan import doctor
from pd_eagle.version import NIXL_VERSION, SGLANG_VERSION, VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
RUN, DEV, GPU = (f"requirements{kind}.txt" for kind in ("", "-dev", "-gpu"))
SCRIPTS = ("scripts/install.sh", "scripts/lock.sh", ".ci/run")

# Which requirements file holds the pins of an extra, beside requirements.txt.
EXTRAS = dict.fromkeys(("demo", "mooncake-cpu", "tracing", "plot", "bench", "test"), DEV) | {
    "mooncake-cuda": GPU
}

# In pieces, so that this file does not hold what it looks for.
FORBIDDEN = re.compile(
    "|".join(
        (
            r"pypi\." + "org",
            "pythonhosted" + r"\.org",
            "download.pytorch" + r"\.org",
            r"https?://[^\s/]+/\S*" + "simple/",
            r"(?<![\w.])/wor" + "k/",
            r"(?<![\w.])/opt/" + "pypi",
        )
    ).encode()
)


def own_files() -> Iterator[Path]:
    kept = {".ci", ".dockerignore", ".gitignore"}
    for top in ROOT.iterdir():
        if top.name.startswith(".") and top.name not in kept:
            continue
        for path in (top, *top.rglob("*")):
            if path.is_file() and not {"__pycache__", "build", "dist"} & set(path.parts):
                yield path


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and "#" not in line]


def pins(name: str) -> dict[str, str]:
    found = (Requirement(line) for line in lines((ROOT / name).read_text("utf-8")))
    return {pin.name: str(pin.specifier).removeprefix("==") for pin in found}


def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def test_no_file_names_a_registry_or_this_machine() -> None:
    named = {
        path: found[0] for path in own_files() if (found := FORBIDDEN.search(path.read_bytes()))
    }
    assert not named


@pytest.mark.parametrize("name", [RUN, DEV, GPU])
def test_a_pin_is_a_name_a_version_and_perhaps_a_marker(name: str) -> None:
    pin = re.compile(r"[a-z0-9][a-z0-9.-]*==[0-9][^\s;@]*( ; .+)?")
    strange = [line for line in lines(text_of(name)) if not pin.fullmatch(line)]
    assert not strange


@pytest.mark.parametrize("name", [DEV, GPU])
def test_no_pin_stands_in_two_files(name: str) -> None:
    assert not pins(RUN).keys() & pins(name).keys()


def test_pins_satisfy_what_setup_cfg_asks_for() -> None:
    wanted = {RUN: lines(setup()["options"]["install_requires"])}
    for extra, text in setup()["options.extras_require"].items():
        wanted.setdefault(EXTRAS[extra], []).extend(lines(text))
    for name, requirements in wanted.items():
        pinned = pins(RUN) | pins(name)
        for requirement in map(Requirement, requirements):
            assert requirement.specifier.contains(pinned[requirement.name]), requirement


def test_the_version_is_one() -> None:
    assert pd_eagle.__version__ == VERSION == importlib.metadata.version("pd-eagle")


def test_every_entry_point_is_installed_and_exists() -> None:
    installed = {
        (point.group, point.name): point.value
        for point in importlib.metadata.distribution("pd-eagle").entry_points
    }
    declared = {
        (group, name.strip()): value.strip()
        for group, text in setup()["options.entry_points"].items()
        for name, value in (line.split("=") for line in lines(text))
    }
    assert installed == declared, "make install makes them new"
    for value in declared.values():
        assert callable(pkgutil.resolve_name(value))


def test_the_versions_that_the_code_names_are_the_pinned_ones() -> None:
    assert pins(RUN)["sglang"] == SGLANG_VERSION
    assert pins(RUN)["nixl"] == NIXL_VERSION


def test_uvs_version_is_one() -> None:
    found = {*re.findall(r"uv==([\d.]+)", text_of("Dockerfile"))}
    assert found == {*re.findall(r"UV_VERSION=([\d.]+)", text_of("scripts/install.sh"))}


def test_mooncakes_debian_packages_are_the_same_everywhere() -> None:
    wanted = set(doctor._MOONCAKE_LIBRARIES.values())
    install = re.search(r"DEBIAN_PACKAGES='(.+)'", text_of("scripts/install.sh"))
    assert install
    assert set(install[1].split()) == wanted
    ubuntu = {name.removesuffix("t64") for name in re.findall(r"\blib\w+", text_of("Dockerfile"))}
    assert wanted <= ubuntu
    assert wanted <= set(re.findall(r"\blib\w+", text_of("README.md")))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_parses_and_can_be_executed(name: str) -> None:
    subprocess.run(["sh", "-n", ROOT / name], check=True)
    assert (ROOT / name).stat().st_mode & 0o111


def test_make_help_lists_every_target() -> None:
    makefile = text_of("Makefile")
    phony = {name for row in re.findall(r"^\.PHONY: (.+)$", makefile, re.M) for name in row.split()}
    explained = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.M))
    assert phony == explained


def test_the_image_gets_what_its_dockerfile_copies() -> None:
    sources = re.findall(r"^COPY (.+) \S+$", text_of("Dockerfile"), re.M)
    copied = {name for row in sources for name in row.split()}
    let_in = {line[1:] for line in lines(text_of(".dockerignore")) if line.startswith("!")}
    assert copied == let_in
    assert all((ROOT / name).exists() for name in copied)
