"""SGLang's generate interface over a service that answers in letters."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing
from itertools import islice
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from pd_eagle.errors import EngineError, InvalidRequest, WorkerDied
from pd_eagle.messages import Delta, EngineInfo, Options
from pd_eagle.requests import gate
from pd_eagle.requests.generate_api import GenerateApi
from tests.scripted import answer_to, continuation, ids_of
from tests.unit.generate_input import GenerateInput

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from pd_eagle.messages import Request
    from pd_eagle.requests.service import Service


LIMITS = EngineInfo(
    pid=1,
    scheduler_pids=[2],
    max_total_tokens=10**6,
    context_length=10_000,
    vocab_size=0x110000,
)


class Letters:
    """A service: a letter a step; a prompt with "!" fails, with "…" hangs, after two letters."""

    def __init__(self) -> None:
        self.limits = LIMITS
        self.places = 40
        self.requests: list[Request] = []
        self.groups: list[object] = []
        self.patient: list[bool] = []
        self.open = 0
        self.most_open = 0
        self.tokenized_in: list[str] = []

    async def stream(
        self, request: Request, group: object, *, patient: bool
    ) -> AsyncGenerator[Delta, None]:
        self.requests.append(request)
        self.groups.append(group)
        self.patient.append(patient)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            async for delta in self._deltas(request):
                yield delta
        finally:
            self.open -= 1

    def check(self, request: Request) -> int:
        return gate.check(request, self.limits)

    async def _deltas(self, request: Request) -> AsyncGenerator[Delta, None]:
        wanted = request.sampling_params.get("max_new_tokens", 4)
        tokens = islice(continuation(request.input_ids), wanted)
        for count, token in enumerate(tokens, 1):
            await asyncio.sleep(0)
            if count > 2 and ord("!") in request.input_ids:
                raise WorkerDied("decode-0: its process ended")
            if count > 2 and ord("…") in request.input_ids:
                await asyncio.Event().wait()
            meta: dict[str, Any] = {"completion_tokens": count}
            if count == 1:
                meta |= {"id": request.rid, "prompt_tokens": len(request.input_ids)}
            meta["finish_reason"] = {"type": "length"} if count == wanted else None
            if request.options.return_logprob:
                meta["output_token_logprobs"] = [[-0.5, token, None]]
                meta["input_token_logprobs"] = [[-1.0, token, None]] if count == 1 else []
            yield Delta(request.rid, chr(token), [token], meta, count == wanted)

    def tokenize(self, text: str) -> Any:
        self.tokenized_in.append(threading.current_thread().name)
        return {"input_ids": ids_of(text)}


@pytest.fixture
def service() -> Letters:
    return Letters()


def api(service: Letters, *, incremental: bool = False) -> GenerateApi:
    return GenerateApi(cast("Service", service), service.tokenize, incremental=incremental)


async def all_of(results: AsyncGenerator[Any, None]) -> list[Any]:
    async with aclosing(results):
        return [result async for result in results]


async def generate(service: Letters, raw_request: object = None, **fields: Any) -> Any:
    (result,) = await all_of(api(service).generate_request(GenerateInput(**fields), raw_request))
    return result


async def stream(service: Letters, *, incremental: bool = False, **fields: Any) -> list[Any]:
    given = GenerateInput(stream=True, **fields)
    return await all_of(api(service, incremental=incremental).generate_request(given))


# --- what comes back


async def test_one_prompt_is_one_dictionary(service: Letters) -> None:
    result = await generate(service, text="abc", rid="mine")
    assert result["text"] == answer_to("abc", 4)
    assert result["output_ids"] == ids_of(answer_to("abc", 4))
    assert result["meta_info"] == {
        "id": "mine",
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "finish_reason": {"type": "length"},
    }
    assert set(result) == {"text", "output_ids", "meta_info"}


async def test_token_ids_are_taken_as_they_are(service: Letters) -> None:
    result = await generate(service, input_ids=ids_of("abc"))
    assert result["text"] == answer_to("abc", 4)
    assert service.tokenized_in == []


async def test_a_batch_is_a_list_in_order(service: Letters) -> None:
    prompts = [f"prompt {n}" for n in range(20)]
    results = await generate(service, text=prompts, sampling_params={"max_new_tokens": 6})
    assert [result["text"] for result in results] == [answer_to(p, 6) for p in prompts]
    assert service.most_open == 20


async def test_a_batch_of_one_is_a_list_too(service: Letters) -> None:
    results = await generate(service, text=["abc"])
    assert [result["text"] for result in results] == [answer_to("abc", 4)]


async def test_each_prompt_may_have_its_own_parameters(service: Letters) -> None:
    lengths = [{"max_new_tokens": n} for n in (1, 3, 2)]
    results = await generate(service, text=["a", "b", "c"], sampling_params=lengths)
    assert [len(result["text"]) for result in results] == [1, 3, 2]


async def test_n_answers_to_one_prompt(service: Letters) -> None:
    results = await generate(service, text="abc", sampling_params={"n": 3})
    assert [result["text"] for result in results] == [answer_to("abc", 4)] * 3
    assert len({result["meta_info"]["id"] for result in results}) == 3
    assert all("n" not in request.sampling_params for request in service.requests)
    assert len(service.tokenized_in) == 1


async def test_n_answers_to_each_of_a_batch_stand_together(service: Letters) -> None:
    results = await generate(service, text=["a", "b"], sampling_params={"n": 2})
    assert [result["text"] for result in results] == [answer_to(p, 4) for p in "aabb"]


async def test_lists_called_output_are_put_together(service: Letters) -> None:
    result = await generate(service, text="abc", return_logprob=True)
    tokens = ids_of(answer_to("abc", 4))
    assert result["meta_info"]["output_token_logprobs"] == [(-0.5, t, None) for t in tokens]


# --- streams


async def test_a_stream_is_cumulative_as_sglangs(service: Letters) -> None:
    results = await stream(service, text="abc")
    answer = answer_to("abc", 4)
    assert [result["text"] for result in results] == [answer[:n] for n in range(1, 5)]
    assert [len(result["output_ids"]) for result in results] == [1, 2, 3, 4]
    assert not any("index" in result for result in results)  # a batch's alone have one
    assert [r["meta_info"]["completion_tokens"] for r in results] == [1, 2, 3, 4]


async def test_results_do_not_change_after_they_were_given(service: Letters) -> None:
    results = await stream(service, text="abc", return_logprob=True)
    assert len(results[0]["output_ids"]) == 1
    assert len(results[0]["meta_info"]["output_token_logprobs"]) == 1


async def test_an_incremental_stream_has_the_increments(service: Letters) -> None:
    results = await stream(service, incremental=True, text="abc", return_logprob=True)
    assert [result["text"] for result in results] == list(answer_to("abc", 4))
    assert [len(result["output_ids"]) for result in results] == [1] * 4
    logprobs = [result["meta_info"]["output_token_logprobs"] for result in results]
    assert [len(entries) for entries in logprobs] == [1] * 4
    # what did not change is repeated, as SGLang does
    assert [result["meta_info"]["prompt_tokens"] for result in results] == [3] * 4


async def test_streams_of_a_batch_come_mixed_and_told_apart(service: Letters) -> None:
    prompts = ["a", "b", "c"]
    results = await stream(service, text=prompts)
    assert [result["index"] for result in results[:3]] == [0, 1, 2]
    for index, prompt in enumerate(prompts):
        mine = [result for result in results if result["index"] == index]
        assert mine[-1]["text"] == answer_to(prompt, 4)
        assert [len(result["text"]) for result in mine] == [1, 2, 3, 4]


async def test_n_streams_of_one_prompt(service: Letters) -> None:
    results = await stream(service, text="a", sampling_params={"n": 2})
    assert sorted({result["index"] for result in results}) == [0, 1]
    assert len({result["meta_info"]["id"] for result in results}) == 2


# --- ids


async def test_every_request_has_an_id_of_ours(service: Letters) -> None:
    await generate(service, text=["a", "b"], rid=["r1", "r10"])
    rids = [request.rid for request in service.requests]
    assert len(set(rids)) == 2
    assert {len(rid) for rid in rids} == {32}  # none is the prefix of another


async def test_the_users_ids_come_back(service: Letters) -> None:
    results = await generate(service, text=["a", "b"], rid=["r1", "r10"])
    assert [result["meta_info"]["id"] for result in results] == ["r1", "r10"]


# --- what is passed on


async def test_options_and_parameters_reach_the_request(service: Letters) -> None:
    given: dict[str, Any] = {
        "return_logprob": True,
        "top_logprobs_num": 2,
        "logprob_start_len": 0,
        "priority": 5,
        "cache_salt": "salt",
        "extra_key": "key",
        "max_thinking_tokens": 9,
    }
    await generate(service, text="a", sampling_params={"temperature": 0.5, "stop": "x"}, **given)
    (request,) = service.requests
    assert request.options == Options(**given)
    assert request.sampling_params == {"temperature": 0.5, "stop": "x"}


async def test_requests_of_one_call_are_one_group(service: Letters) -> None:
    await generate(service, text=["a", "b"])
    await generate(service, text="c")
    first, second, third = service.groups
    assert first is second is not third


async def test_the_deadline_of_the_http_request_is_the_requests(service: Letters) -> None:
    raw = SimpleNamespace(state=SimpleNamespace(timeout_s=2.5))
    await generate(service, raw, text="a")
    await generate(service, text="a")
    assert [request.timeout_s for request in service.requests] == [2.5, None]


async def test_a_long_prompt_is_tokenized_off_the_loop(service: Letters) -> None:
    await generate(service, text="a" * 10_000)
    await generate(service, text="a" * 10)
    long, short = service.tokenized_in
    assert short == threading.current_thread().name != long


# --- what is refused

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "Either text, input_ids or input_embeds"),
    "no ids": ({"input_ids": []}, "input_ids cannot be empty"),
    "ids that are not whole": ({"input_ids": [1, 2.5]}, "wanted a list of whole numbers"),
    "ids that are truths": ({"input_ids": [[True]]}, "wanted a list of whole numbers"),
    "a prompt in a prompt": ({"text": [["a"]]}, "wanted text or a list of token ids"),
    "no answers": ({"text": "a", "sampling_params": {"n": 0}}, "n=0: wanted a whole number from 1"),
    "fewer than none": (
        {"text": "a", "sampling_params": {"n": -1}},
        "n=-1: wanted a whole number from 1",
    ),
    "n that is no number": ({"text": "a", "sampling_params": {"n": None}}, "not supported between"),
    "an image": ({"text": "a", "image_data": "cat.png"}, "image_data='cat.png': wanted unset"),
    "LoRA": ({"text": ["a"], "lora_path": ["x"]}, "lora_path='x': wanted unset"),
    "hidden states": ({"text": "a", "return_hidden_states": True}, "return_hidden_states=True"),
    "a session": ({"text": "a", "session_id": "s"}, "session_id='s': wanted unset"),
    "a sampling mask": ({"text": "a", "return_sampling_mask": True}, "return_sampling_mask=True"),
}


@pytest.mark.parametrize(("fields", "message"), REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("streamed", [False, True])
async def test_what_cannot_be_served_is_refused_before_anything_runs(
    service: Letters, fields: dict[str, Any], message: str, streamed: bool
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        await (stream if streamed else generate)(service, **fields)
    assert service.requests == []


# --- failures and goodbyes


async def test_the_first_failure_of_a_batch_ends_the_others(service: Letters) -> None:
    with pytest.raises(WorkerDied):
        await generate(service, text=["…", "fails!", "…"])
    assert service.open == 0


async def test_the_first_failure_of_a_streamed_batch_ends_the_others(service: Letters) -> None:
    given = GenerateInput(text=["…", "fails!"], stream=True)
    results = api(service).generate_request(given)
    before = [await anext(results) for _ in range(4)]
    assert [result["index"] for result in before] == [0, 1, 0, 1]
    with pytest.raises(WorkerDied):
        await anext(results)
    assert service.open == 0


async def test_a_failure_of_one_stream_is_the_streams(service: Letters) -> None:
    with pytest.raises(WorkerDied):
        await stream(service, text="fails!")
    assert service.open == 0


@pytest.mark.parametrize("prompts", ["a…", ["a…", "b…"]])
@pytest.mark.parametrize("streamed", [False, True])
async def test_cancelling_aborts(service: Letters, prompts: Any, streamed: bool) -> None:
    work = (stream if streamed else generate)(service, text=prompts)
    task = asyncio.create_task(work)
    for _ in range(20):
        await asyncio.sleep(0)
    assert service.open == (1 if isinstance(prompts, str) else 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert service.open == 0


@pytest.mark.parametrize("prompts", ["abc", ["abc", "def"]])
async def test_closing_a_stream_aborts(service: Letters, prompts: Any) -> None:
    results = api(service).generate_request(GenerateInput(text=prompts, stream=True))
    await anext(results)
    assert service.open > 0
    await results.aclose()
    assert service.open == 0


async def test_two_failures_at_once_are_one(service: Letters) -> None:
    with pytest.raises((WorkerDied, EngineError)):
        await generate(service, text=["one!", "two!"])
    assert service.open == 0
