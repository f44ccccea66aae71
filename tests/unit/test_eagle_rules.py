"""What EAGLE refuses, what it relaxes, and that the README says the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pd_eagle.errors import InvalidRequest
from pd_eagle.messages import Options, Request
from pd_eagle.requests.eagle_rules import TREATMENTS, EagleRules


def request(options: Options | None = None, /, **params: Any) -> Request:
    return Request("r", [1], params, options or Options())


def of(treatment: str) -> list[str]:
    return [name for name, (_, how, _) in TREATMENTS.items() if how == treatment]


def test_what_is_not_read_is_refused_with_the_reason() -> None:
    reason = "min_p: wanted unset, SGLang does not read it .* SPECULATIVE_ALGORITHM is on"
    with pytest.raises(InvalidRequest, match=reason):
        EagleRules().check(request(min_p=0.1))
    with pytest.raises(InvalidRequest, match="custom_logit_processor"):
        EagleRules().check(request(Options(custom_logit_processor="{}")))


@pytest.mark.parametrize("value", [0, 0.0, None])
def test_a_value_that_asks_for_nothing_passes(value: object) -> None:
    EagleRules().check(request(min_p=value))


@pytest.mark.parametrize("name", of("relaxed"))
def test_what_is_relaxed_is_said_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    rules = EagleRules()
    for _ in range(3):
        rules.check(request(**{name: 2}))
    assert [record.getMessage().split()[:3] for record in caplog.records] == [
        [name, "is", "relaxed"]
    ]


def test_what_asks_for_nothing_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    neutral = {name: none for name, (none, _, _) in TREATMENTS.items()}
    EagleRules().check(request(**neutral))
    EagleRules().check(request(temperature=0.7, top_p=0.9, top_k=4, logit_bias={"1": 2.0}))
    assert not caplog.records


def test_a_models_own_default_is_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    defaults = {"min_p": 0.05, "top_p": 0.8, "repetition_penalty": 1.05}
    EagleRules().correct_defaults(defaults)
    assert defaults == {"top_p": 0.8, "repetition_penalty": 1.05}
    assert "min_p=0.05 of the model's generation_config.json is left out" in caplog.text


def test_the_readme_has_every_parameter_with_its_treatment() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    table = readme.split("| in a request | with EAGLE |")[1].split("\n\n")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    told = {name: how.split()[0] for names, how in rows for name in re.findall(r"`(\w+)`", names)}
    aliases = {"seed", "min_tokens"}
    assert {n: how for n, how in told.items() if n not in aliases} == {
        name: treatment for name, (_, treatment, _) in TREATMENTS.items()
    }
