"""Errors: the tree that the docstring draws, and the way over a socket and to HTTP."""

from __future__ import annotations

import re

import pytest

from pd_eagle import errors
from pd_eagle.errors import InvalidRequest, ModelNotFound, PdEagleError, WorkerDied, from_code


def tree(root: type[PdEagleError]) -> list[type[PdEagleError]]:
    return [root, *(error for child in root.__subclasses__() for error in tree(child))]


ALL = tree(PdEagleError)


def test_the_docstring_draws_the_whole_tree() -> None:
    drawn = re.findall(r"(\w+) +(\d{3}) (\w+)", errors.__doc__ or "")
    assert drawn == [(error.__name__, str(error.status), error.code) for error in ALL]


def test_the_drawn_branches_are_the_real_ones() -> None:
    lines = (errors.__doc__ or "").splitlines()
    depth = {
        found[1]: line.index(found[1]) // 4
        for line in lines
        if (found := re.search(r"(\w+) +\d{3} ", line))
    }
    ours = {error: [base for base in error.__mro__ if base in ALL] for error in ALL}
    assert depth == {error.__name__: len(bases) - 1 for error, bases in ours.items()}


def test_codes_are_the_errors_own() -> None:
    codes = [error.code for error in ALL]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("error", ALL)
def test_every_error_crosses_as_code_and_message(error: type[PdEagleError]) -> None:
    back = from_code(error.code, "what went wrong")
    assert type(back) is error
    assert back.message == "what went wrong"


def test_an_unknown_code_is_kept() -> None:
    back = from_code("moon_phase", "full")
    assert type(back) is PdEagleError
    assert str(back) == "moon_phase: full"


@pytest.mark.parametrize("error", ALL)
def test_only_what_is_over_soon_is_worth_another_try(error: type[PdEagleError]) -> None:
    assert error.retryable == (error.status in (429, 503))


@pytest.mark.parametrize(
    ("error", "kind", "code", "param"),
    [
        (InvalidRequest("m"), "invalid_request_error", "invalid_request_error", None),
        (ModelNotFound("m"), "invalid_request_error", "model_not_found", "model"),
        (WorkerDied("m"), "server_error", "worker_died", None),
        (PdEagleError("m"), "server_error", "internal_error", None),
    ],
)
def test_the_shape_is_openais(error: PdEagleError, kind: str, code: str, param: str | None) -> None:
    wanted = {"message": "m", "type": kind, "param": param, "code": code}
    assert error.as_openai() == {"error": wanted}
