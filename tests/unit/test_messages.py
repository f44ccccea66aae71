"""Messages: what is sent is what arrives, and only what is in the unions crosses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_eagle.messages import (
    Abort,
    Bootstrap,
    Control,
    ControlResult,
    Delta,
    EngineInfo,
    Failed,
    FromWorker,
    Load,
    Options,
    Ping,
    Pong,
    Ready,
    Request,
    StartFailure,
    Stop,
    Submit,
    ToWorker,
)

if TYPE_CHECKING:
    from collections.abc import Callable

OPTIONS = Options(return_logprob=True, token_ids_logprob=[1, 2], external_trace_header={"a": "b"})
REQUEST = Request("r" * 32, [0, 1, 2**31], {"temperature": 0.5, "stop": ["a"]}, OPTIONS, 2.5)
INFO = EngineInfo(1, [2, 3], 4096, 1024, 32000)

TO_WORKER = [
    Submit(REQUEST),
    Submit(Request("r", [1], {}), Bootstrap("127.0.0.1", 8998, 2**63 - 1)),
    Abort("r"),
    Ping(7),
    Control(8, "start_profile", {"num_steps": 3}),
    Stop(),
]
FROM_WORKER = [
    Ready(INFO),
    StartFailure("ValueError: no weights"),
    Delta("r", "text é", [1, 2], {"finish_reason": {"type": "stop", "matched": 2}}, True),
    Failed("r", "engine_error", "why"),
    Pong(7, Load(1.5, running=2, spec_accept_length=1.8)),
    Pong(8, None),
    ControlResult(8, {"success": True}),
    ControlResult(9, error="RuntimeError: why"),
]


def crossed(message: Any, union: Any) -> Any:
    return msgspec.msgpack.decode(msgspec.msgpack.encode([message]), type=list[union])[0]


@pytest.mark.parametrize("message", TO_WORKER, ids=lambda m: type(m).__name__)
def test_what_the_front_sends_arrives(message: Any) -> None:
    assert crossed(message, ToWorker) == message


@pytest.mark.parametrize("message", FROM_WORKER, ids=lambda m: type(m).__name__)
def test_what_a_worker_sends_arrives(message: Any) -> None:
    assert crossed(message, FromWorker) == message


def test_every_message_of_the_unions_is_tried() -> None:
    assert {type(m) for m in TO_WORKER} == set(get_args(ToWorker))
    assert {type(m) for m in FROM_WORKER} == set(get_args(FromWorker))


@pytest.mark.parametrize(
    ("message", "union"), [(Ping(1), FromWorker), (Ready(INFO), ToWorker), (Load(1.0), FromWorker)]
)
def test_what_is_not_in_the_union_does_not_cross(message: Any, union: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        crossed(message, union)


@pytest.mark.parametrize(
    "change",
    [
        lambda: setattr(REQUEST, "rid", "other"),
        lambda: setattr(FROM_WORKER[2], "text", "other"),
        lambda: setattr(INFO, "pid", 2),
    ],
)
def test_messages_are_frozen(change: Callable[[], None]) -> None:
    with pytest.raises(AttributeError):
        change()


VALUES = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False)


@given(
    ids=st.lists(st.integers(0, 2**63 - 1)),
    text=st.text(),
    params=st.dictionaries(
        st.text(),
        st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False),
    ),
)
def test_any_ids_texts_and_parameters_cross(
    ids: list[int], text: str, params: dict[str, Any]
) -> None:
    delta = Delta("r", text, ids, params, False)
    assert crossed(delta, FromWorker) == delta
    submit = Submit(Request("r", ids, params))
    assert crossed(submit, ToWorker) == submit
