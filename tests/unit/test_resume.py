"""An answer that was broken off and gone on with elsewhere is the answer of an undisturbed run."""

from __future__ import annotations

import random
from typing import Any

import pytest

from pd_eagle.messages import Delta, Options, Request
from pd_eagle.requests.resume import Progress, first_may_come_early, why_not_resume

# An engine's answer, token by token: 0 means that the character is not complete yet.
ANSWER = ["The", " ca", "pi", "tal", " is", "", " Pâ", "ris", ".", " Ber", "lin", "!"]
PROMPT = [7, 8, 9]


def token_ids(count: int) -> list[int]:
    return list(range(100, 100 + count))


def decode(ids: list[int]) -> str:
    """Return the text of `ids`, which ends incomplete where ANSWER holds text back."""
    text = "".join(ANSWER[i - 100] for i in ids)
    return text + ("�" if not ANSWER[ids[-1] - 100] else "")


class Engine:
    """Greedy: what it says depends only on how much of the answer is in its prompt."""

    def __init__(self, request: Request) -> None:
        self.said = len(request.input_ids) - len(PROMPT)
        assert request.input_ids == PROMPT + token_ids(self.said)
        self.first = self.said
        self.request = request

    def deltas(self, sizes: list[int]) -> list[Delta]:
        limit = self.first + self.request.sampling_params["max_new_tokens"]
        end = min(limit, len(ANSWER))
        found = []
        for size in sizes:
            upto = min(self.said + size, end)
            found.append(self._delta(upto, finished=upto == end))
            if upto == end:
                break
        return found

    def _delta(self, upto: int, *, finished: bool) -> Delta:
        ids = token_ids(len(ANSWER))[self.said : upto]
        text = "".join(ANSWER[self.said : upto])
        new = upto - self.first
        meta: dict[str, Any] = {
            "prompt_tokens": len(self.request.input_ids),
            "completion_tokens": new,
            "output_token_logprobs": [[-1.0, i, None] for i in ids],
            "output_token_logprobs_length": new,
            "finish_reason": {"type": "length", "length": new} if finished else None,
        }
        self.said = upto
        return Delta("r", text, ids, meta, finished)


def request(**params: Any) -> Request:
    return Request("r", PROMPT, {"max_new_tokens": len(ANSWER)} | params)


class Client:
    """Puts together what the client got."""

    def __init__(self) -> None:
        self.text = ""
        self.ids: list[int] = []
        self.logprobs: list[Any] = []
        self.meta: dict[str, Any] = {}
        self.finished = False

    def take(self, delta: Delta | None) -> None:
        if delta is None:
            return
        assert not self.finished
        self.text += delta.text
        self.ids += delta.output_ids
        self.logprobs += delta.meta.pop("output_token_logprobs")
        self.meta |= delta.meta
        self.finished = delta.finished


def run(asked: Request, breaks: list[int], sizes: list[int]) -> Client:
    """Answer `asked`, broken off after each of `breaks` deltas of an attempt."""
    progress, client = Progress(asked, decode), Client()
    for deltas in [*breaks, len(ANSWER)]:
        engine = Engine(progress.next_attempt("another"))
        for delta in engine.deltas(sizes)[:deltas]:
            client.take(progress.add(delta))
            if client.finished:
                return client
    raise AssertionError("the answer has no end")


@pytest.mark.parametrize("seed", range(200))
def test_broken_off_anywhere_any_number_of_times(seed: int) -> None:
    draw = random.Random(seed)
    new_tokens = draw.randint(1, len(ANSWER))
    asked = request(max_new_tokens=new_tokens)
    sizes = [draw.randint(1, 3) for _ in ANSWER]
    client = run(asked, [draw.randint(0, 6) for _ in range(draw.randint(1, 4))], sizes)
    assert client.text == "".join(ANSWER[:new_tokens])
    assert client.ids == token_ids(new_tokens)
    assert [logprob[1] for logprob in client.logprobs] == client.ids
    assert client.meta["prompt_tokens"] == len(PROMPT)
    assert client.meta["completion_tokens"] == new_tokens
    assert client.meta["output_token_logprobs_length"] == new_tokens
    assert client.meta["finish_reason"] == {"type": "length", "length": new_tokens}


def test_an_incomplete_character_is_generated_again() -> None:
    progress = Progress(request(), decode)
    for delta in Engine(progress.next_attempt("a")).deltas([1] * 6):
        progress.add(delta)
    again = progress.next_attempt("b")
    assert again.input_ids == PROMPT + token_ids(5)  # not the sixth, whose text is held back
    assert again.sampling_params["max_new_tokens"] == len(ANSWER) - 5
    assert again.rid == "b"


def test_where_no_character_ended_of_late_all_of_it_is_generated_again() -> None:
    asked = request(max_new_tokens=100)
    progress = Progress(asked, lambda ids: "\ufffd")
    progress.next_attempt("a")
    for token in range(40):
        progress.add(Delta("a", "", [token], {}, False))
    again = progress.next_attempt("b")
    assert (again.input_ids, again.sampling_params) == (PROMPT, asked.sampling_params)
    # What the client has already is not told again; what comes after it is.
    assert progress.add(Delta("b", "", list(range(40)), {}, False)) is None
    later = progress.add(Delta("b", "x", [40], {}, False))
    assert later is not None
    assert (later.text, later.output_ids) == ("x", [40])


@pytest.mark.parametrize("broken_after", range(1, 12))
@pytest.mark.parametrize("stop", ["capital", "tal is", "s. B", "."])
def test_a_stop_string_across_the_seam(stop: str, broken_after: int) -> None:
    """The engine sees only its own part of the text: the seam is ours to watch."""
    whole = "".join(ANSWER)
    progress, client = Progress(request(stop=[stop]), decode), Client()
    first = Engine(progress.next_attempt("a")).deltas([1] * broken_after)
    for delta in first:
        if stop in client.text + delta.text:
            return  # the first engine ends the answer itself
        client.take(progress.add(delta))
    second = Engine(progress.next_attempt("b"))
    own_part = ""
    for delta in second.deltas([1] * len(ANSWER)):
        own_part += delta.text
        if stop in own_part:
            return  # and here the second does
        client.take(progress.add(delta))
        if client.finished:
            break
    assert client.meta["finish_reason"] == {"type": "stop", "matched": stop}
    assert whole[: whole.index(stop)] in client.text
    assert stop not in client.text


def test_before_the_first_delta_it_is_the_same_request() -> None:
    asked = request(json_schema="{}")
    progress = Progress(asked, decode)
    assert not progress.begun
    first, second = progress.next_attempt("a"), progress.next_attempt("b")
    assert (first.rid, second.rid) == ("a", "b")
    assert first.input_ids == second.input_ids == asked.input_ids
    assert first.sampling_params == second.sampling_params == asked.sampling_params


CANNOT = [
    ({"json_schema": "{}"}, Options()),
    ({"regex": "a+"}, Options()),
    ({"ebnf": "root ::= 'a'"}, Options()),
    ({"structural_tag": "{}"}, Options()),
    ({"stop_regex": "a+"}, Options()),
    ({"frequency_penalty": 0.5}, Options()),
    ({"presence_penalty": -1}, Options()),
    ({"repetition_penalty": 1.1}, Options()),
    ({}, Options(custom_logit_processor="x")),
]


@pytest.mark.parametrize(("params", "options"), CANNOT)
def test_what_cannot_go_on_elsewhere_says_why(params: dict[str, Any], options: Options) -> None:
    why = why_not_resume(Request("r", PROMPT, params, options))
    assert why is not None
    assert next(iter(params), "custom_logit_processor") in why


def test_what_can_go_on_elsewhere() -> None:
    neutral = {"temperature": 0.7, "frequency_penalty": 0.0, "repetition_penalty": 1.0, "regex": ""}
    assert why_not_resume(Request("r", PROMPT, neutral)) is None


@pytest.mark.parametrize(
    ("params", "options", "early"),
    [
        ({"max_new_tokens": 8, "temperature": 0.5}, Options(), True),
        ({"stop": [], "stop_token_ids": None, "skip_special_tokens": True}, Options(), True),
        ({"stop": "end"}, Options(), False),
        ({"stop_token_ids": [5]}, Options(), False),
        ({"skip_special_tokens": False}, Options(), False),
        ({"max_new_tokens": 0}, Options(), False),
        ({"regex": "a+"}, Options(), False),
        ({"presence_penalty": 0.1}, Options(), False),
        ({}, Options(return_logprob=True), False),
    ],
)
def test_the_first_token_comes_early_where_nothing_can_take_it_back(
    params: dict[str, Any], options: Options, early: bool
) -> None:
    assert first_may_come_early(Request("r", [1], params, options)) is early


def test_a_long_answer_after_a_seam_is_not_read_again_at_every_delta() -> None:
    """Only so much text is kept at hand as a stop string can reach over the seam."""
    progress = Progress(request(stop=["THE END"], max_new_tokens=5000), None)
    progress.next_attempt("a")
    for number in range(100):
        progress.add(Delta("a", "some text ", [number], {}, finished=False))
    progress.next_attempt("b")
    for number in range(100, 2000):
        progress.add(Delta("b", "some text ", [number], {}, finished=False))
        before, after = progress._around_seam
        assert len(before) <= len("THE END") >= len(after)
