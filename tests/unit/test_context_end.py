"""What an engine says of the longest requests that it takes."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from pd_eagle.workers import context_end


def told(*, context: int, kv: int, drafts: bool) -> tuple[int, int]:
    """Return the longest request and prompt, each plus one, of an engine of these sizes."""

    def get_worker_info(self: Any) -> tuple[Any, ...]:
        longest = min(context - 1, kv - 1)
        return ("kv", "prefill", "running", "queued", longest, longest - 5, "seed")

    worker = SimpleNamespace(
        model_config=SimpleNamespace(context_len=context),
        model_runner=SimpleNamespace(spec_algorithm=SimpleNamespace(is_none=lambda: not drafts)),
    )
    info = context_end._WORKER_INFO.new(get_worker_info)(worker)
    assert (info[:4], info[6:]) == (("kv", "prefill", "running", "queued"), ("seed",))
    return info[4], info[5]


@pytest.mark.parametrize(
    ("kv", "drafts", "longest"),
    [(1000, False, (257, 256)), (1000, True, (255, 256)), (200, False, (199, 194))],
)
def test_the_whole_context_is_used(kv: int, drafts: bool, longest: tuple[int, int]) -> None:
    assert told(context=256, kv=kv, drafts=drafts) == longest


def test_only_where_a_scheduler_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, context_end._SCHEDULER, raising=False)
    assert context_end.overrides() == []
    monkeypatch.setitem(sys.modules, context_end._SCHEDULER, SimpleNamespace())
    assert context_end.overrides() == [context_end._WORKER_INFO]
