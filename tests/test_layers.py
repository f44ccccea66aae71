"""The order of the modules, one door for each foreign library, and who may see the environment.

Held by the syntax tree of every module, so imports inside functions and for types count too. A
module that is not written yet may stand in the tables; one that is missing from them fails.
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

# Each module imports only from those above it. `cpu` and `demo` are whole packages.
LAYERS = """
version errors messages heap api_keys json_size bounds
overrides
cpu
demo
forms unknown_names tool_parsers known_models measured config
nvml devices
fork_check cuda_answers
shapes models drafts cpu_families
fit tuning speculation placement advice
engine_args graph_sizes
doctor
deployment
loops channel fork_safety orphan signals run_folder launch last_words engine_metrics
forked_engine engine worker_main zygote
worker
own_time signs
restarts ports supervisor
quarantine router resume admission prefill_window handoff canary
programs sampling_names gate bodies text_length eagle_rules
bottleneck metrics
tracing
service
batches answers generate_api openai_api
health turns keep_alive app http_protocol
gpu_holds front
relay front_thread pd_engine
tune tune_run
serve
cli __main__
"""
ORDER = LAYERS.split()

# Foreign library → the modules that may import it.
DOORS: dict[str, set[str]] = {
    "pynvml": {"nvml"},
    "sglang": {"engine", "openai_api", "cpu"},
    # The engine's door writes the token map in torch's own form.
    "torch": {"cpu", "demo", "engine"},
    "transformers": {"demo"},
    "huggingface_hub": {"models"},
    "prometheus_client": {"metrics", "engine_metrics"},
    "numpy": {"metrics"},
    "tqdm": {"pd_engine"},
    "opentelemetry": {"tracing"},
    "starlette": {"app", "turns", "keep_alive", "openai_api"},
    # SGLang's OpenAI classes speak in these.
    "fastapi": {"openai_api"},
    "pydantic": {"openai_api"},
    "uvloop": {"loops"},
    "uvicorn": {"serve", "http_protocol"},
    "orjson": {"app", "answers", "openai_api"},
    # The form of the values that cross a layer or a process.
    "msgspec": {
        "messages",
        "channel",
        "engine",
        "worker_main",
        "zygote",
        "handoff",
        "resume",
        "gate",
        "tracing",
        "generate_api",
    },
}

# What answers at once must not even reach a module that imports these when it is imported.
HEAVY = {"sglang", "torch", "transformers", "fastapi", "pydantic", "starlette", "uvicorn"}
QUICK = ("cli", "deployment", "placement", "config")

# Who sees the process's own environment, and why.
ENVIRONMENT = {
    "cli": "the command line is where the environment comes from",
    "pd_engine": "a library has no main: CUDA_VISIBLE_DEVICES and what its workers inherit",
    "serve": "the zygote is forked from this process, so what engines need is set here",
    "engine_metrics": "prometheus_client and SGLang take the folder from a variable alone",
    "worker_main": "the child's main: sets what its engine needs before SGLang is imported",
    "cuda_answers": "a zygote has what was found of the GPUs from a variable alone",
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


def place(name: str) -> str:
    """Return the row of the tables that `name` falls under: its own, or its package's."""
    while name and name not in ORDER:
        name = name.rpartition(".")[0]
    return name


def test_every_module_has_its_place() -> None:
    assert [name for name in OWN if not place(name)] == [], "give it a place in ORDER"
    assert len(set(ORDER)) == len(ORDER)


@pytest.mark.parametrize("name", OWN)
def test_a_module_imports_only_from_above(name: str) -> None:
    here = ORDER.index(place(name))
    below = {
        found.target
        for found in own(name)
        if found.target
        and ORDER.index(place(found.target)) >= here
        and place(found.target) != place(name)
    }
    assert below == set(), f"{name} stands above these in ORDER"


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
    graph = {name: {i.target for i in own(name) if i.at_once and i.target} for name in OWN}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("name", OWN)
def test_a_foreign_library_has_its_doors(name: str) -> None:
    strangers = {
        library for library in foreign(name) if not {name, place(name)} & DOORS.get(library, set())
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
    if name not in TREES:
        pytest.skip(f"{name} is not written yet")
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
    seeing = {place(name) for name in OWN if sees_environment(TREES[name])}
    assert seeing <= ENVIRONMENT.keys(), "pass the mapping in, or give a reason in ENVIRONMENT"
    written = {place(name) for name in OWN}
    assert seeing == ENVIRONMENT.keys() & written, "take the reason out again"


def test_the_server_is_a_few_lines_over_the_package() -> None:
    server = ROOT / "server.py"
    if not server.exists():
        pytest.skip("server.py is not written yet")
    found = {found.target for found in imports(ast.parse(server.read_text(encoding="utf-8")))}
    assert found == {"os", "sys", f"{PACKAGE}.serve"}


# The rules themselves, on modules that break them.
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
