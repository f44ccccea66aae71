"""What an abort of SGLang's own means, and which of an engine's processes are schedulers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pd_eagle.errors import InvalidRequest
from pd_eagle.messages import Delta, Failed, Request, Submit
from pd_eagle.workers.engine import _abort_failure, _schedulers, _SGLangEngine

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


@pytest.mark.parametrize(
    ("status", "in_pd", "code"),
    [
        (500, True, "transfer_failed"),  # one half lost the other: another pair may do
        (500, False, "engine_error"),
        (None, True, "engine_error"),
        (400, True, "invalid_request_error"),
        (429, True, "overloaded"),
        (503, False, "overloaded"),
    ],
)
def test_what_an_abort_of_sglangs_own_means(status: int | None, in_pd: bool, code: str) -> None:
    reason = {"type": "abort", "message": "lost", "status_code": status}
    assert _abort_failure("r", reason, in_pd=in_pd) == Failed("r", code, "lost")


@pytest.mark.parametrize("in_pd", [True, False])
def test_a_grammar_without_a_token_is_the_clients_fault(in_pd: bool) -> None:
    said = "Grammar accept_token failed for req r with token 0: Tokens not accepted: 0"
    reason = {"type": "abort", "message": said, "status_code": 500}
    found = _abort_failure("r", reason, in_pd=in_pd)
    assert found.code == InvalidRequest.code
    assert "admits none of the model's tokens" in found.message


class Raising:
    """SGLang's tokenizer manager: `steps` tokens, then a ValueError."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    async def generate_request(self, obj: Any, _: object) -> AsyncGenerator[dict[str, Any], None]:
        for _number in range(self._steps):
            yield {"text": "a", "output_ids": [1], "meta_info": {"finish_reason": None}}
        raise ValueError("something is wrong")


@pytest.mark.parametrize(
    ("steps", "code"), [(0, "invalid_request_error"), (1, "engine_error"), (2, "engine_error")]
)
async def test_only_before_the_first_token_is_an_error_the_clients(
    monkeypatch: pytest.MonkeyPatch, steps: int, code: str
) -> None:
    monkeypatch.setattr("pd_eagle.workers.engine._to_sglang", lambda submit: submit)
    engine = object.__new__(_SGLangEngine)
    engine._tokenizer_manager, engine._in_pd = Raising(steps), True
    events = [event async for event in engine.generate(Submit(Request("r", [1], {})))]
    assert [isinstance(event, Delta) for event in events] == [True] * steps + [False]
    assert events[-1] == Failed("r", code, "something is wrong")


@pytest.mark.parametrize(
    ("detokenizers", "schedulers"), [(0, [1, 2, 3, 4]), (1, [1, 2, 3, 4]), (2, [1, 2])]
)
def test_schedulers_are_told_from_detokenizers(detokenizers: int, schedulers: list[int]) -> None:
    assert _schedulers([1, 2, 3, 4, 5], detokenizers) == schedulers
