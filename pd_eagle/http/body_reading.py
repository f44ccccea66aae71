"""Reads a request's body into one of SGLang's request classes; says what is wrong with it.

It knows no route, and nothing of what a request's fields mean.
"""

from __future__ import annotations

import codecs
from typing import Any

import orjson
from pydantic import ValidationError

from pd_eagle.errors import InvalidRequest
from pd_eagle.requests.bounds import shown
from pd_eagle.requests.generate_api import MISREAD, sglang_message
from pd_eagle.requests.json_size import has_more_values

_PROBLEMS_SHOWN = 8
#: Pydantic builds the whole list of problems at once.
_PROBLEMS_READ = 2**11
LONGEST_MESSAGE = 4000


def load(body: bytes, most_values: int) -> dict[str, Any]:
    """Return the object in `body`. Parsing holds the GIL, so it is limited to milliseconds."""
    body = body.removeprefix(codecs.BOM_UTF8)  # as some editors and .NET write it
    if len(body) > most_values and has_more_values(body, most_values):
        raise InvalidRequest(f"the body has more than {most_values} values: wanted at most that")
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidRequest(f"the body is {type(fields).__name__}: wanted a JSON object")
    return fields


def timeout_s(value: object, longest_s: float) -> float | None:
    """Return a request's `timeout`; raises `InvalidRequest` for what is none."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= longest_s:
        raise InvalidRequest(
            f"timeout={shown(value)}: wanted a number of seconds above 0 and at most "
            f"{longest_s:g} (REQUEST_TIMEOUT_S)"
        )
    return float(value)


def validated(request_class: Any, fields: dict[str, Any]) -> Any:
    """Return `fields` as `request_class`; raises `InvalidRequest`."""
    try:
        return request_class.model_validate(fields)
    except ValidationError as error:
        raise InvalidRequest(_describe(error)) from error
    except MISREAD as error:  # SGLang's validators, given a type that they do not expect
        raise InvalidRequest(sglang_message(error)) from error


def _describe(error: ValidationError) -> str:
    """Return the first few problems as text: each item of a long list may have several."""
    if error.error_count() > _PROBLEMS_READ:
        return f"the body has {error.error_count()} problems: wanted fields as OpenAI has them"
    problems = []
    for problem in error.errors(include_url=False, include_context=False)[:_PROBLEMS_SHOWN]:
        place = ".".join(str(part) for part in problem["loc"])[:200] or "body"
        given = "" if problem["type"] == "missing" else f"={shown(problem['input'])}"
        problems.append(f"{place}{given}: {problem['msg']}")
    more = error.error_count() - _PROBLEMS_SHOWN
    return "; ".join(problems)[:LONGEST_MESSAGE] + (f"; and {more} more" if more > 0 else "")
