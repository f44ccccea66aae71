"""What `generate_api` takes for granted of SGLang's `GenerateReqInput`, against the real one."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest

from pd_eagle.messages import Options
from tests.unit.generate_input import GenerateInput

CASES: dict[str, dict[str, Any]] = {
    "text": {"text": "a", "rid": "r"},
    "ids": {"input_ids": [1, 2], "rid": "r", "return_logprob": True},
    "batch": {"text": ["a", "b"], "rid": ["r1", "r2"], "top_logprobs_num": 3},
    "batch with one rid": {"text": ["a", "b"], "rid": "r"},
    "batch of ids": {"input_ids": [[1], [2]], "rid": ["r1", "r2"]},
    "n": {"text": "a", "sampling_params": {"n": 2}, "rid": "r"},
    "parameters each": {
        "text": ["a", "b"],
        "rid": ["r1", "r2"],
        "sampling_params": [{"max_new_tokens": 1}, {"max_new_tokens": 2}],
    },
    "cache": {"text": ["a", "b"], "rid": ["r1", "r2"], "cache_salt": "s", "extra_key": "k"},
    "nothing": {},
    "no ids": {"input_ids": []},
}
SEEN = ("rid", "text", "input_ids", *Options.__struct_fields__)

REAL = """
import dataclasses, json, sys
from sglang.srt.managers.io_struct import GenerateReqInput
from tests.engine.test_contract_generate_input import seen
cases = json.load(sys.stdin)
fields = [field.name for field in dataclasses.fields(GenerateReqInput)]
print(json.dumps([fields, {name: seen(GenerateReqInput(**case)) for name, case in cases.items()}]))
"""


def seen(given: Any) -> Any:
    """Return what `generate_api` sees of an input."""
    try:
        given.normalize_batch_and_arguments()
    except ValueError as error:
        return str(error)
    items = [given] if given.is_single else [given[i] for i in range(given.batch_size)]
    return [
        given.is_single,
        given.parallel_sample_num,
        [[getattr(item, name) for name in SEEN] for item in items],
        [(item.sampling_params or {}).get("max_new_tokens") for item in items],
    ]


@pytest.fixture(scope="module")
def real() -> tuple[set[str], dict[str, Any]]:
    """The real one's fields, and what is seen of it in every case."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REAL],
        input=json.dumps(CASES),
        capture_output=True,
        text=True,
        check=True,
        timeout=800,
    )
    fields, cases = json.loads(run.stdout.splitlines()[-1])
    return set(fields), cases


def test_every_option_that_is_carried_is_one_of_the_real_one(
    real: tuple[set[str], dict[str, Any]],
) -> None:
    assert set(Options.__struct_fields__) <= real[0]


def test_the_stand_in_has_nothing_that_the_real_one_lacks(
    real: tuple[set[str], dict[str, Any]],
) -> None:
    assert {field.name for field in dataclasses.fields(GenerateInput)} <= real[0]


@pytest.mark.parametrize("case", CASES)
def test_the_stand_in_behaves_as_the_real_one(
    real: tuple[set[str], dict[str, Any]], case: str
) -> None:
    mine = json.loads(json.dumps(seen(GenerateInput(**CASES[case]))))
    assert mine == real[1][case]
