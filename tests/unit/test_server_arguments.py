"""Keyword arguments meant for `sglang.Engine`: settings, arguments of the engines, or refused."""

from __future__ import annotations

from typing import Any

import pytest

from pd_eagle.errors import SettingsError
from pd_eagle.plan.config import Settings
from pd_eagle.plan.owned_arguments import OWNED, RENAMED, SGLANG_DEFAULTS
from pd_eagle.plan.setting_groups import TABLE
from pd_eagle.plan.sglang_arguments import SGLangArguments
from tools import arguments

SCRIPT: dict[str, Any] = {
    "model_path": "/models/m",
    "tp_size": 2,
    "mem_fraction_static": 0.8,
    "log_level": "error",
    "dtype": "float32",
    "attention_backend": "triton",
    "disable_cuda_graph": True,
    "random_seed": 7,
}


def test_a_script_for_sglang_is_taken_as_it_is() -> None:
    found = Settings.from_kwargs(**SCRIPT)
    assert (found.model_path, found.tp_size, found.mem_fraction_static) == ("/models/m", 2, 0.8)
    assert found.log_level == "ERROR"
    assert found.engine_args == {
        "dtype": "float32",
        "attention_backend": "triton",
        "disable_cuda_graph": True,
        "random_seed": 7,
    }


def test_what_is_called_otherwise_here_sets_that() -> None:
    found = Settings.from_kwargs(
        disaggregation_transfer_backend="nixl",
        disaggregation_bootstrap_port=9000,
        disaggregation_ib_device="mlx5_0",
    )
    assert found.disagg_transfer_backend == "nixl"
    assert found.disagg_bootstrap_port == 9000
    assert found.disagg_ib_device == "mlx5_0"


def test_both_ways_to_give_an_argument_go_together() -> None:
    found = Settings.from_kwargs(engine_args='{"page_size": 16}', dtype="float32")
    assert found.engine_args == {"page_size": 16, "dtype": "float32"}
    assert Settings.from_kwargs(engine_args={"dtype": "half"}).engine_args == {"dtype": "half"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"model_pth": "m"}, "model_pth: did you mean model_path?"),
        ({"attention_backed": "x"}, "attention_backed: did you mean attention_backend?"),
        ({"qwertz": 1}, "qwertz: neither a setting nor in SGLang's ServerArgs"),
        ({"pp_size": 2}, "pp_size=2: wanted unset: it is the plan's"),
        ({"dp_size": 4}, "set UNIFIED_REPLICAS, PREFILL_REPLICAS or DECODE_REPLICAS"),
        ({"disaggregation_mode": "decode"}, "wanted unset: set PD_MODE"),
        ({"skip_tokenizer_init": True}, "wanted unset: the engines make the text"),
        ({"server_args": object()}, "wanted unset: give its fields as keyword arguments"),
        ({"forward_hooks": [object()]}, "wanted JSON's types: engines are other processes"),
        (
            {"engine_args": {"dtype": "half"}, "dtype": "float32"},
            "dtype='float32' and engine_args: dtype='half': wanted one of the two",
        ),
        (
            {"disagg_transfer_backend": "nixl", "disaggregation_transfer_backend": "mooncake"},
            "wanted one of the two",
        ),
        ({"engine_args": "{", "dtype": "half"}, "engine_args='{': wanted a JSON object"),
    ],
)
def test_what_is_refused_and_why(given: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_kwargs(**given)
    assert told in caught.value.message


def test_everything_wrong_is_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_kwargs(pp_size=2, dtyp="half", port=-1)
    told = caught.value.message.splitlines()
    assert len(told) == 3
    assert {line.split("=")[0].split(":")[0] for line in told} == {"pp_size", "dtyp", "port"}


def test_sglangs_own_defaults_ask_for_nothing() -> None:
    assert Settings.from_kwargs(**SGLANG_DEFAULTS) == Settings.from_kwargs()


def test_every_argument_of_sglang_has_one_place() -> None:
    fields = {name for name, _ in arguments.sglang_fields()}
    settings = {name for row in TABLE for name in row.keywords}
    assert len(fields) > 500
    assert fields - settings - OWNED.keys() | RENAMED.keys() == set(SGLangArguments.__annotations__)
    assert fields >= SGLANG_DEFAULTS.keys()
    assert {row.field for row in TABLE} >= set(RENAMED.values())


@pytest.mark.parametrize("name", sorted(OWNED))
def test_a_reason_names_settings_that_there_are(name: str) -> None:
    named = [word.strip(",") for word in OWNED[name].split() if word.strip(",").isupper()]
    assert set(named) <= {variable for row in TABLE for variable in row.names}


def test_the_typed_dictionaries_are_those_of_the_settings_and_of_sglang() -> None:
    told = "python -m tools.arguments writes them"
    assert arguments.SETTINGS.read_text("utf-8") == arguments.setting_arguments(), told
    assert arguments.SGLANG.read_text("utf-8") == arguments.sglang_arguments(), told
