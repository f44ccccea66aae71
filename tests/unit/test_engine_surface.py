"""`PDEngine` beside `sglang.Engine`, whose source is read, not imported."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from pd_eagle import call_types
from pd_eagle.call_types import GenerateOptions, SamplingParams
from pd_eagle.errors import InvalidRequest, NotSupported, PdEagleError, SettingsError
from pd_eagle.messages import Options
from pd_eagle.pd_engine import PDEngine
from pd_eagle.plan.setting_groups import TABLE
from pd_eagle.requests import gate
from pd_eagle.requests.bounds import Unset, Unused
from pd_eagle.requests.logprobs import as_tuples
from pd_eagle.unsupported import UNSUPPORTED, Unsupported

_CLASSES = {"engine.py": "Engine", "engine_score_mixin.py": "EngineScoreMixin"}

#: Offered here, with other parameters than SGLang's, and why that is no loss.
OTHER_PARAMETERS = {
    "generate": "all beyond the first three are keywords; what is refused says so when given",
    "async_generate": "as generate",
}


def methods_of_sglang() -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    """The public methods of `sglang.Engine`, by name."""
    spec = importlib.util.find_spec("sglang")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "srt" / "entrypoints"
    return {
        node.name: node
        for file, name in _CLASSES.items()
        for found in ast.parse((folder / file).read_text("utf-8")).body
        if isinstance(found, ast.ClassDef) and found.name == name
        for node in found.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_"
    }


METHODS = methods_of_sglang()


def parameters_of_sglang(name: str) -> list[str]:
    given = METHODS[name].args
    return [argument.arg for argument in (*given.args[1:], *given.kwonlyargs)]


def test_every_method_of_sglang_has_a_place() -> None:
    offered = {name for name in vars(PDEngine) | _inherited() if name[0] != "_"} - set(UNSUPPORTED)
    assert len(METHODS) >= 40
    assert METHODS.keys() <= offered | UNSUPPORTED.keys()
    assert UNSUPPORTED.keys() <= METHODS.keys(), "a release has dropped or renamed it"


def _inherited() -> dict[str, Any]:
    return {name: value for base in PDEngine.__mro__[1:-1] for name, value in vars(base).items()}


@pytest.mark.parametrize("name", sorted(METHODS.keys() - UNSUPPORTED.keys()))
def test_a_call_for_sglang_is_a_call_for_this(name: str) -> None:
    method = getattr(PDEngine, name)
    ours = inspect.signature(method).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in ours.values())
    missing = [p for p in parameters_of_sglang(name) if p not in ours]
    assert takes_any or not missing
    assert inspect.iscoroutinefunction(method) == isinstance(METHODS[name], ast.AsyncFunctionDef)
    if name not in OTHER_PARAMETERS:
        assert list(ours)[1 : len(parameters_of_sglang(name)) + 1] == parameters_of_sglang(name)


def test_the_first_arguments_of_generate_are_those_of_sglang() -> None:
    for name in ("generate", "async_generate"):
        assert (
            list(inspect.signature(getattr(PDEngine, name)).parameters)[1:4]
            == (parameters_of_sglang(name)[:3])
        )


def test_every_further_argument_of_generate_is_bounded_or_refused() -> None:
    decided = {"bootstrap_host", "bootstrap_port", "bootstrap_room", "data_parallel_rank"}
    decided |= {"routed_dp_rank", "disagg_prefill_dp_rank", "kv_hints"}
    refused = {name for name, bound in gate.OPTIONS.items() if isinstance(bound, Unset | Unused)}
    taken = set(GenerateOptions.__annotations__)
    further = set(parameters_of_sglang("generate")[3:]) - {"stream"}
    assert further <= taken | refused | decided
    assert taken == set(Options.__struct_fields__) | {"rid"}


def test_the_typed_sampling_parameters_are_those_that_can_be_set() -> None:
    settable = {
        name
        for name, bound in gate.SAMPLING.items()
        if not isinstance(bound, Unset) and name != "ebnf_full_assistant"
    }
    assert set(SamplingParams.__annotations__) == settable


def test_the_typed_dictionaries_can_be_resolved() -> None:
    for typed in (call_types.GenerateResult, call_types.MetaInfo, SamplingParams):
        assert get_type_hints(typed)


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_what_is_refused_says_why(name: str) -> None:
    with pytest.raises(NotSupported, match=f"^{name}: {UNSUPPORTED[name][:20]}") as caught:
        getattr(Unsupported(), name)("x", y=1)
    assert isinstance(caught.value, NotImplementedError)
    assert caught.value.status == 501


@pytest.mark.parametrize("kind", [InvalidRequest, SettingsError])
def test_what_sglang_raises_as_a_value_error_is_one(kind: type[PdEagleError]) -> None:
    assert issubclass(kind, ValueError)


def test_the_signature_names_every_setting_with_its_default() -> None:
    found = inspect.signature(PDEngine).parameters
    assert {row.field: found[row.field].default for row in TABLE} == {
        row.field: row.default for row in TABLE
    }
    assert list(found)[-1] == "sglang_arguments"


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("output_token_logprobs", [[-1.0, 5, None]], [(-1.0, 5, None)]),
        ("input_top_logprobs", [None, [[-1.0, 5, "a"]]], [None, [(-1.0, 5, "a")]]),
        ("output_token_ids_logprobs", [[], [[-2.0, 7, None]]], [[], [(-2.0, 7, None)]]),
        ("output_hidden_states", [[1.0]], [[1.0]]),
    ],
)
def test_log_probabilities_are_tuples(name: str, given: list[Any], expected: list[Any]) -> None:
    assert as_tuples(name, given) == expected
