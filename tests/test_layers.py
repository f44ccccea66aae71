"""The wings of the house, one door for each foreign library, and who may see the environment.

Held by the syntax tree of every module, so imports inside functions and for types count too.
"""

from __future__ import annotations

import ast
import graphlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
PACKAGE = "pd_eagle"

#: Each wing imports only from itself and from those before it: plan imports nothing of workers,
#: workers nothing of requests, requests nothing of http.
WINGS = ("ground", "cpu", "demo", "plan", "workers", "requests", "http", "top")
GROUND = {"errors", "messages", "version", "overrides"}
TOP = {
    *("loops", "gpu_holds", "front", "relay", "front_thread", "pd_engine"),
    *("call_types", "generating", "scoring", "controlling", "unsupported", "mounting"),
    *("tune", "tune_traffic", "tune_engine", "tune_load", "tune_run", "tune_report"),
    *("tune_plot", "tune_cli"),
    *("option_types", "warm", "serve", "cli", "__main__"),
}

# Foreign library → the modules that may import it.
DOORS: dict[str, set[str]] = {
    "pynvml": {"plan.nvml"},
    "sglang": {
        *("workers.engine", "workers.engine_control", "cpu"),
        *("http.openai_api", "http.tokenizer_manager"),
        *("http.anthropic_api", "http.native_api", "http.responses_api"),
        "http.request_schemas",
    },
    # The engine's door writes the token map in torch's own form.
    "torch": {"cpu", "demo", "workers.engine"},
    "transformers": {"demo"},
    "huggingface_hub": {"plan.models"},
    "prometheus_client": {"requests.metrics", "requests.exposition", "workers.engine_metrics"},
    "numpy": {"requests.metrics"},
    "tqdm": {"generating"},
    "matplotlib": {"tune_plot"},
    "opentelemetry": {"requests.tracing"},
    "starlette": {
        *("mounting", "pd_engine"),
        *("http.app", "http.disconnect", "http.error_responses", "http.event_stream"),
        *("http.keep_alive", "http.openai_api", "http.pacing", "http.request_body"),
        *("http.access", "http.native_api", "http.native_routes", "http.request_ids"),
        *("http.anthropic_api", "http.responses_api"),
    },
    # SGLang's OpenAI classes speak in these.
    "fastapi": {"http.openai_api", "http.responses_api"},
    "jinja2": {"http.responses_api"},
    "pydantic": {
        *("http.body_reading", "http.native_api", "http.request_schemas", "http.responses_api"),
    },
    "uvloop": {"loops"},
    "uvicorn": {"serve", "http.http_protocol"},
    "orjson": {
        *("http.answers", "http.error_responses", "http.error_shapes", "http.openai_api"),
        *("http.anthropic_api", "http.body_reading", "http.response_store"),
        "http.native_routes",
    },
    # The form of the values that cross a layer or a process.
    "msgspec": {
        "messages",
        "workers.channel",
        "workers.frames",
        "workers.engine",
        "workers.engine_control",
        "workers.worker_main",
        "workers.zygote_main",
        "requests.handoff",
        "requests.resume",
        "requests.gate",
        "requests.tracing",
        "requests.generate_api",
    },
}

# What answers at once must not even reach a module that imports these when it is imported.
HEAVY = {"sglang", "torch", "transformers", "fastapi", "pydantic", "starlette", "uvicorn"}
QUICK = ("cli", "plan.deployment", "plan.placement", "plan.config")

# Who sees the process's own environment, and why.
ENVIRONMENT = {
    "cli": "the command line is where the environment comes from",
    "pd_engine": "a library has no main: CUDA_VISIBLE_DEVICES and what its workers inherit",
    "tune_engine": "engines inherit it, as those of PDEngine do",
    "serve": "the zygote is forked from this process, so what engines need is set here",
    "workers.engine_metrics": "prometheus_client and SGLang take the folder from a variable alone",
    "workers.worker_main": "the child's main: sets what its engine needs before SGLang is imported",
    "workers.grammar_dead_ends": "SGLang calls install() without arguments, in anybody's process",
    "workers.model_files": "SGLang takes the names of files to leave out from a variable alone",
    "plan.cuda_answers": "a zygote has what was found of the GPUs from a variable alone",
    "cpu": "SGLang calls activate() without arguments, in anybody's process",
    "demo": "XDG_CACHE_HOME, and what the converting child inherits",
}


@dataclass(frozen=True)
class Import:
    """One import statement: of what, and whether it runs when the module is imported."""

    target: str
    at_once: bool


def name_of(path: Path) -> str:
    """Return the module's name within the package; the package itself is ''."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


TREES = {
    name_of(path): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / PACKAGE).rglob("*.py"))
}
OWN = sorted(name for name in TREES if name)


def imports(tree: ast.AST, at_once: bool = True) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from (Import(target, at_once) for target in targets(node))
        else:
            yield from imports(node, at_once and not runs_later(node))


def runs_later(node: ast.AST) -> bool:
    """Tell whether the body of `node` is skipped when the module is imported."""
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def targets(node: ast.ImportFrom) -> Iterator[str]:
    """Name the modules meant: `from package import module` means the module."""
    assert node.module is not None
    for alias in node.names:
        within = f"{node.module}.{alias.name}".removeprefix(f"{PACKAGE}.")
        is_own = node.module.split(".")[0] == PACKAGE and within in TREES
        yield f"{PACKAGE}.{within}" if is_own else node.module


def own(name: str) -> set[Import]:
    """What `name` imports of this package, by names within it."""
    return {
        Import(found.target.removeprefix(PACKAGE).removeprefix("."), found.at_once)
        for found in imports(TREES[name])
        if found.target.split(".")[0] == PACKAGE
    }


def foreign(name: str, at_once: bool = False) -> set[str]:
    """The libraries, neither ours nor Python's, that `name` imports."""
    roots = {
        found.target.split(".")[0] for found in imports(TREES[name]) if found.at_once or not at_once
    }
    return roots - set(sys.stdlib_module_names) - {PACKAGE}


def wing(name: str) -> str:
    """Return the wing that the module `name` stands in."""
    first, _, inside = name.partition(".")
    if inside or first in WINGS:
        return first
    return "ground" if first in GROUND else "top"


def climbs(name: str, target: str) -> bool:
    """Tell whether an import of `target` by `name` runs up."""
    return WINGS.index(wing(target)) > WINGS.index(wing(name))


def test_every_module_stands_in_a_wing() -> None:
    assert {name for name in OWN if wing(name) == "top"} == TOP, "ground, top, or a wing's folder"
    assert {wing(name) for name in OWN} == set(WINGS)


@pytest.mark.parametrize("name", OWN)
def test_no_arrow_runs_up(name: str) -> None:
    assert {found.target for found in own(name) if climbs(name, found.target)} == set()


@pytest.mark.parametrize("name", OWN)
def test_no_module_imports_the_package_itself(name: str) -> None:
    assert all(found.target for found in own(name)), "import the module that defines the name"


def test_nothing_outside_reaches_into_the_cpu_platform() -> None:
    reached = {
        (name, found.target)
        for name in OWN
        if not name.startswith("cpu")
        for found in own(name)
        if found.target.startswith("cpu.")
    }
    assert reached == set()


def test_no_import_goes_in_a_circle() -> None:
    graph = {name: {i.target for i in own(name) if i.target} for name in OWN}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("name", OWN)
def test_a_foreign_library_has_its_doors(name: str) -> None:
    strangers = {
        library for library in foreign(name) if not {name, wing(name)} & DOORS.get(library, set())
    }
    assert strangers == set(), f"{name} is no door of these; DOORS says which is"


def loaded_with(name: str, seen: set[str]) -> set[str]:
    """The foreign libraries that importing `name` imports, through our own modules too."""
    seen.add(name)
    found = foreign(name, at_once=True)
    for reached in sorted(i.target for i in own(name) if i.at_once and i.target not in seen):
        found |= loaded_with(reached, seen)
    return found


@pytest.mark.parametrize("name", QUICK)
def test_what_must_answer_at_once_imports_nothing_heavy(name: str) -> None:
    assert loaded_with(name, set()) & HEAVY == set()


def sees_environment(tree: ast.AST) -> bool:
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    taken = {
        f"os.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "os"
        for alias in node.names
    }
    return not (used | taken).isdisjoint(("os.environ", "os.environb", "os.getenv", "os.putenv"))


def test_only_these_see_the_environment() -> None:
    seeing = {name for name in OWN if sees_environment(TREES[name])}
    places = {name if name in ENVIRONMENT else wing(name) for name in seeing}
    assert places <= ENVIRONMENT.keys(), "pass the mapping in, or give a reason in ENVIRONMENT"
    assert places == ENVIRONMENT.keys(), "take the reason out again"


def test_the_server_is_a_few_lines_over_the_package() -> None:
    server = ROOT / "server.py"
    found = {found.target for found in imports(ast.parse(server.read_text(encoding="utf-8")))}
    assert found == {"os", "sys", f"{PACKAGE}.serve"}


# The rules themselves, on modules that break them.
@pytest.mark.parametrize(
    ("name", "target", "expected"),
    [
        ("plan.config", "workers.worker", True),
        ("workers.worker", "plan.config", False),
        ("workers.channel", "requests.router", True),
        ("requests.service", "http.app", True),
        ("errors", "plan.config", True),
        ("http.app", "serve", True),
        ("serve", "http.app", False),
        ("cpu.tree", "overrides", False),
        ("plan.shapes", "plan.models", False),
    ],
)
def test_an_arrow_that_runs_up_is_found(name: str, target: str, expected: bool) -> None:
    assert climbs(name, target) is expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import sglang.srt", {Import("sglang.srt", True)}),
        ("def f():\n    import torch", {Import("torch", False)}),
        ("if TYPE_CHECKING:\n    import torch", {Import("torch", False)}),
        ("try:\n    import torch\nexcept ImportError: ...", {Import("torch", True)}),
        ("class A:\n    import torch", {Import("torch", True)}),
        (
            "from pd_eagle import errors, nonsense",
            {Import("pd_eagle.errors", True), Import("pd_eagle", True)},
        ),
        ("from pd_eagle.errors import StartFailed", {Import("pd_eagle.errors", True)}),
    ],
)
def test_imports_are_found(source: str, expected: set[Import]) -> None:
    assert set(imports(ast.parse(source))) == expected


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("import os\nos.environ['A']", True),
        ("import os\nos.getenv('A')", True),
        ("from os import environ", True),
        ("import os\nos.getpid()", False),
        ("def f(environ): return environ['A']", False),
    ],
)
def test_the_environment_is_found(source: str, seen: bool) -> None:
    assert sees_environment(ast.parse(source)) is seen
