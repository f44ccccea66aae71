"""`score` and `async_score` as `sglang.Engine` has them: SGLang's own code over this front.

It does not know where a request runs.
"""

from __future__ import annotations

import asyncio
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pd_eagle.workers.engine_control import score_mixin

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from pd_eagle.front import Front
    from pd_eagle.front_thread import FrontThread
    from pd_eagle.requests.generate_api import GenerateApi


class Scoring:
    """The calls that return probabilities of given tokens after a prompt."""

    _thread: FrontThread
    _front: Front[Any]
    _api: GenerateApi

    def score(
        self,
        query: str | list[int] | None = None,
        items: str | list[str] | list[list[int]] | None = None,
        label_token_ids: list[int] | list[list[int]] | None = None,
        apply_softmax: bool = False,
        item_first: bool = False,
        embed_override_token_id: int | None = None,
        query_embed_overrides: Any = None,
        item_embed_overrides: Any = None,
        return_pooled_hidden_states: bool = False,
        score_extraction_token_id: int | None = None,
        temperature: float = 1.0,
        return_token_logprobs: bool = False,
        stacked_query_item_embed_overrides: Any = None,
    ) -> Any:
        """Return SGLang's `ScoreResult`: `scores` holds for each item a value for each label token.

        Raises `ValueError` for what SGLang refuses.
        """
        given = {name: value for name, value in locals().items() if name != "self"}
        return self._thread.call(self._score(given))

    async def async_score(
        self,
        query: str | list[int] | None = None,
        items: str | list[str] | list[list[int]] | None = None,
        label_token_ids: list[int] | list[list[int]] | None = None,
        apply_softmax: bool = False,
        item_first: bool = False,
        embed_override_token_id: int | None = None,
        query_embed_overrides: Any = None,
        item_embed_overrides: Any = None,
        return_pooled_hidden_states: bool = False,
        score_extraction_token_id: int | None = None,
        temperature: float = 1.0,
        return_token_logprobs: bool = False,
        stacked_query_item_embed_overrides: Any = None,
    ) -> Any:
        """Score like `score`, from any running loop."""
        given = {name: value for name, value in locals().items() if name != "self"}
        return await asyncio.wrap_future(self._thread.submit(self._score(given)))

    def _score(self, given: dict[str, Any]) -> Coroutine[Any, Any, Any]:
        self._thread.check_usable()
        scored: Coroutine[Any, Any, Any] = self._scorer.score_request(**given)
        return scored

    @cached_property
    def _scorer(self) -> Any:
        scorer: Any = score_mixin(self._front.deployment.front_args())()
        scorer.tokenizer = self._api.tokenizer
        scorer.generate_request = self._api.generate_request
        scorer.is_generation = True
        return scorer
