"""Deltas of one request as the result dictionary that SGLang's callers expect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pd_eagle.requests.logprobs import as_tuples

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pd_eagle.messages import Delta


class Answer:
    """One request's deltas, put together as SGLang's result dictionary."""

    def __init__(
        self,
        *,
        public_id: str,
        index: int | None,
        incremental: bool,
        prompt_ids: Sequence[int] | None = None,
    ) -> None:
        """`index`: which answer of a streamed batch; others carry none, as in SGLang.

        `prompt_ids` are in every result, if they were asked for.
        """
        self._beside: dict[str, Any] = {} if index is None else {"index": index}
        if prompt_ids is not None:
            self._beside["prompt_token_ids"] = list(prompt_ids)
        self._public_id = public_id
        self._incremental = incremental
        self._text: list[str] = []
        self._output_ids: list[int] = []
        self._meta: dict[str, Any] = {}
        self._grown: dict[str, list[Any]] = {}

    def add(self, delta: Delta) -> dict[str, Any]:
        """Add one delta; return the result so far, or the increment alone.

        Lists called `output_…` in `meta_info` are increments too, as in SGLang.
        """
        if self._incremental:
            self._meta.update(delta.meta)
            return self._result(delta.text, delta.output_ids)
        self.take(delta)
        return self.whole()

    def take(self, delta: Delta) -> None:
        """Add one delta, for `whole`."""
        self._text.append(delta.text)
        self._output_ids += delta.output_ids
        for key, value in delta.meta.items():
            if not isinstance(value, list):
                self._meta[key] = value
            elif key.startswith("output_"):
                self._grown.setdefault(key, []).extend(as_tuples(key, value))
            else:
                self._meta[key] = as_tuples(key, value)

    def whole(self) -> dict[str, Any]:
        """Return the result so far."""
        self._meta.update({key: list(value) for key, value in self._grown.items()})
        return self._result("".join(self._text), list(self._output_ids))

    def _result(self, text: str, output_ids: list[int]) -> dict[str, Any]:
        meta = dict(self._meta)
        meta["id"] = self._public_id
        result = {"text": text, "output_ids": output_ids, "meta_info": meta}
        return result | self._beside if self._beside else result
