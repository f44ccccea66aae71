"""The handoff: one request over one pair, one terminal event, both halves always ended."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Self

import pytest

from pd_eagle.errors import (
    DeadlineExceeded,
    EngineError,
    InvalidRequest,
    PdEagleError,
    TransferFailed,
    WorkerDied,
)
from pd_eagle.messages import Options, Request
from pd_eagle.requests import handoff
from tests.unit.scripted_pair import Half, pair_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pd_eagle.messages import Delta

PLAIN = Request("r" * 32, [1, 2, 3], {"max_new_tokens": 8})
LOGPROBS = Request("r" * 32, [1, 2, 3], {}, Options(return_logprob=True))


class Run:
    """A handoff that runs beside the test, and what it has yielded."""

    first_early = False

    def __init__(self, request: Request = PLAIN, *, unified: bool = False) -> None:
        self.prefill = Half("prefill")
        self.decode = Half("unified" if unified else "decode")
        self.pair = pair_of(self.decode, None if unified else self.prefill)
        self.request = request
        self.deltas: list[Delta] = []
        self.phases: list[str] = []
        self.seconds: list[float] = []
        self.timeout_s = 60.0

    async def __aenter__(self) -> Self:
        self.task = asyncio.create_task(self._consume())
        await self.settle()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def _consume(self) -> None:
        deadline = asyncio.get_running_loop().time() + self.timeout_s
        events = handoff.run(
            self.pair, self.request, deadline, self._hear, first_early=self.first_early
        )
        async with aclosing(events) as deltas:
            async for delta in deltas:
                self.deltas.append(delta)

    def _hear(self, phase: str, seconds: float) -> None:
        assert seconds >= 0
        self.phases.append(phase)
        self.seconds.append(seconds)

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    def assert_both_ended(self) -> None:
        halves = [self.decode] + ([self.prefill] if self.pair.prefill else [])
        for half in halves:
            assert half.aborted == [self.request.rid]
            assert half.inflight == 0


@pytest.fixture
async def run() -> AsyncIterator[Run]:
    async with Run() as run:
        yield run


async def test_both_halves_get_the_same_request_and_room(run: Run) -> None:
    (prefill,), (decode,) = run.prefill.submitted, run.decode.submitted
    assert prefill == decode
    assert prefill.request == PLAIN
    assert prefill.bootstrap is not None
    assert (prefill.bootstrap.host, prefill.bootstrap.port) == ("127.0.0.1", 9000)


async def test_the_answer_is_decodes(run: Run) -> None:
    run.decode.says("a")
    run.prefill.says("ignored", finished=True)
    run.decode.says("b")
    run.decode.says("c", finished=True, finish_reason={"type": "length"})
    await run.task
    assert run.text == "abc"
    assert [delta.finished for delta in run.deltas] == [False, False, True]
    run.assert_both_ended()


async def test_one_half_alone_in_unified_mode() -> None:
    async with Run(unified=True) as run:
        assert run.decode.submitted[0].bootstrap is None
        run.decode.says("a", finished=True)
        await run.task
        assert run.text == "a"
        assert run.prefill.submitted == []
        run.assert_both_ended()


@pytest.mark.parametrize(
    ("half", "code", "error"),
    [
        ("prefill", "engine_error", EngineError),
        ("prefill", "worker_died", WorkerDied),
        ("prefill", "invalid_request_error", InvalidRequest),
        ("decode", "transfer_failed", TransferFailed),
        ("decode", "worker_died", WorkerDied),
        ("decode", "nobody_knows", PdEagleError),
    ],
)
async def test_a_failure_of_either_half_before_the_first_delta_ends_it(
    run: Run, half: str, code: str, error: type[PdEagleError]
) -> None:
    getattr(run, half).fails(code, "the reason")
    with pytest.raises(error, match="the reason"):
        await run.task
    assert run.deltas == []
    run.assert_both_ended()


async def test_a_failure_of_decode_in_mid_answer_ends_it(run: Run) -> None:
    run.decode.says("ab")
    await run.settle()
    run.decode.fails("worker_died")
    with pytest.raises(WorkerDied):
        await run.task
    assert run.text == "ab"
    run.assert_both_ended()


async def test_prefill_may_die_once_decode_has_the_kv(run: Run) -> None:
    run.decode.says("a")
    await run.settle()
    run.prefill.fails("worker_died")
    await run.settle()
    run.decode.says("b", finished=True)
    await run.task
    assert run.text == "ab"
    run.assert_both_ended()


async def test_a_failure_that_comes_with_the_last_delta_comes_too_late(run: Run) -> None:
    run.decode.says("a", finished=True)
    run.prefill.fails("worker_died")
    await run.task
    assert run.text == "a"


@pytest.mark.parametrize("begun", [False, True])
async def test_the_deadline_ends_it(begun: bool) -> None:
    run = Run()
    run.timeout_s = 0.01
    async with run:
        if begun:
            run.decode.says("a")
        with pytest.raises(DeadlineExceeded, match="the request's time is up"):
            await run.task
        run.assert_both_ended()


async def test_a_deadline_that_is_over_asks_nobody_for_long() -> None:
    run = Run()
    run.timeout_s = -1.0
    async with run:
        with pytest.raises(DeadlineExceeded):
            await run.task
        run.assert_both_ended()


@pytest.mark.parametrize("begun", [False, True])
async def test_a_consumer_that_goes_away_ends_it(run: Run, begun: bool) -> None:
    if begun:
        run.decode.says("a")
        await run.settle()
    run.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run.task
    run.assert_both_ended()


async def test_closing_it_between_two_deltas_ends_it() -> None:
    prefill, decode = Half("prefill"), Half("decode")
    deadline = asyncio.get_running_loop().time() + 60
    deltas = handoff.run(pair_of(decode, prefill), PLAIN, deadline)
    first = asyncio.ensure_future(anext(deltas))
    await asyncio.sleep(0)
    decode.says("a")
    decode.says("b")
    assert (await first).text == "a"
    await deltas.aclose()
    assert prefill.aborted == decode.aborted == [PLAIN.rid]


async def test_a_handoff_that_never_begins_asks_nobody() -> None:
    prefill, decode = Half("prefill"), Half("decode")
    deltas = handoff.run(pair_of(decode, prefill), PLAIN, 0.0)
    await deltas.aclose()
    assert prefill.submitted == decode.submitted == []


async def test_no_timer_is_left(run: Run) -> None:
    run.decode.says("a", finished=True)
    await run.task
    timers: list[Any] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    assert all(timer.cancelled() for timer in timers)


# --- the first token, which prefill knows before decode says it

OF_PREFILL: dict[str, Any] = {
    "prompt_tokens": 3,
    "completion_tokens": 1,
    "finish_reason": {"type": "length", "length": 0},
    "e2e_latency": 0.1,
}


class EarlyRun(Run):
    first_early = True


@pytest.fixture
async def early() -> AsyncIterator[EarlyRun]:
    async with EarlyRun() as run:
        yield run


async def test_prefill_gives_the_first_token_and_decode_the_rest(early: Run) -> None:
    early.prefill.says("a", finished=True, **OF_PREFILL)
    await early.settle()
    assert early.text == "a"
    early.decode.says("a", queue_time=0.2, completion_tokens=1)
    await early.settle()
    assert len(early.deltas) == 1
    early.decode.says("b", completion_tokens=2)
    early.decode.says("c", finished=True)
    await early.task
    assert [(delta.text, delta.output_ids) for delta in early.deltas] == [
        ("a", [97]),
        ("b", [98]),
        ("c", [99]),
    ]
    # What decode said with the token that it repeated is not lost, and prefill's own times are.
    assert [delta.meta for delta in early.deltas] == [
        {"prompt_tokens": 3, "completion_tokens": 1, "finish_reason": None},
        {"queue_time": 0.2, "completion_tokens": 2},
        {},
    ]
    assert early.phases == ["prefill", "first_delta"]
    early.assert_both_ended()


async def test_decode_may_repeat_it_with_more_or_as_the_end(early: Run) -> None:
    early.prefill.says("a", finished=True)
    early.decode.says("abc", finished=True)
    await early.task
    assert [delta.text for delta in early.deltas] == ["a", "bc"]


async def test_an_answer_of_one_token_ends_with_decodes_word(early: Run) -> None:
    early.prefill.says("a", finished=True)
    early.decode.says("a", finished=True, finish_reason={"type": "length", "length": 1})
    await early.task
    first, last = early.deltas
    assert (first.text, first.finished) == ("a", False)
    assert (last.text, last.output_ids, last.finished) == ("", [], True)
    assert last.meta["finish_reason"] == {"type": "length", "length": 1}


async def test_prefill_has_nothing_to_give_once_decode_has_begun(early: Run) -> None:
    early.decode.says("a")
    early.prefill.says("a", finished=True)
    early.decode.says("b", finished=True)
    await early.task
    assert [delta.text for delta in early.deltas] == ["a", "b"]


@pytest.mark.parametrize("text", ["", "\N{REPLACEMENT CHARACTER}"])
async def test_what_is_not_a_whole_text_waits_for_decode(early: Run, text: str) -> None:
    early.prefill.says(text, finished=True)
    await early.settle()
    assert early.deltas == []
    early.decode.says("ab", finished=True)
    await early.task
    assert early.text == "ab"


async def test_halves_that_disagree_fail_the_request(early: Run) -> None:
    early.prefill.says("a", finished=True)
    early.decode.says("b")
    with pytest.raises(EngineError, match=r"prefill's first token was \[97\] 'a', decode's is"):
        await early.task
    early.assert_both_ended()


# --- the prompt's log probabilities, which only prefill knows

KNOWN: dict[str, Any] = {"input_token_logprobs": [[-1.0, 1, None]], "input_top_logprobs": [None]}


async def test_deltas_wait_for_the_prompts_logprobs() -> None:
    async with Run(LOGPROBS) as run:
        run.decode.says("a", input_token_logprobs=[], completion_tokens=1)
        run.decode.says("b")
        await run.settle()
        assert run.deltas == []
        run.prefill.says(finished=True, **KNOWN, completion_tokens=1)
        await run.settle()
        assert run.text == "ab"
        run.decode.says("c", finished=True)
        await run.task
    assert [delta.meta for delta in run.deltas] == [
        {"completion_tokens": 1, **KNOWN},
        KNOWN,
        KNOWN,
    ]


async def test_the_first_tokens_given_ids_come_from_prefill() -> None:
    row, later = [[-1.0, 7, None]], [[-2.0, 7, None]]
    async with Run(LOGPROBS) as run:
        run.prefill.says(finished=True, output_token_ids_logprobs=[row])
        run.decode.says("a", output_token_ids_logprobs=[None])
        run.decode.says("b", finished=True, output_token_ids_logprobs=[later])
        await run.task
    given = [delta.meta["output_token_ids_logprobs"] for delta in run.deltas]
    assert given == [[row], [later]]


async def test_deltas_do_not_wait_where_nobody_wants_the_logprobs(run: Run) -> None:
    run.decode.says("a")
    await run.settle()
    run.prefill.says(finished=True, **KNOWN)
    await run.settle()
    assert [delta.meta for delta in run.deltas] == [{}]


async def test_in_unified_mode_the_engine_itself_knows_the_prompts_logprobs() -> None:
    async with Run(LOGPROBS, unified=True) as run:
        run.decode.says("a", finished=True, **KNOWN)
        await run.task
    assert run.deltas[0].meta == KNOWN


async def test_a_prefill_that_dies_while_deltas_wait_for_it_ends_the_handoff() -> None:
    async with Run(LOGPROBS) as run:
        run.decode.says("a")
        run.prefill.fails("worker_died")
        with pytest.raises(WorkerDied):
            await run.task
        run.assert_both_ended()


async def test_prefill_is_over_when_decode_speaks_though_its_report_comes_late() -> None:
    async with Run() as run:
        run.decode.says("a")
        await run.settle()
        assert run.phases == ["prefill", "first_delta"]
        run.prefill.says("a", finished=True)
        run.decode.says("b", finished=True)
        await run.task
        assert run.phases == ["prefill", "first_delta"]


async def test_the_kv_handoff_counts_from_prefills_last_step_to_decodes_first_delta() -> None:
    async with Run() as run:
        run.prefill.says("a", finished=True, prefill_finished_time=time.time() - 5.0)
        await run.settle()
        assert run.phases == ["prefill"]
        run.decode.says("a")
        run.decode.says("b", finished=True)
        await run.task
        assert run.phases == ["prefill", "first_delta", "kv_handoff"]
        assert 5.0 <= run.seconds[-1] < 35.0  # not the milliseconds since the front heard of it


async def test_one_engine_has_no_prefill_phase() -> None:
    async with Run(unified=True) as run:
        run.decode.says("ab", finished=True)
        await run.task
        assert run.phases == ["first_delta"]
