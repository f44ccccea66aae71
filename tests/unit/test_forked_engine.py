"""Scheduler and detokenizer are forked, with CUDA's own answers, unless CUDA was touched."""

from __future__ import annotations

import multiprocessing
import os
from typing import TYPE_CHECKING, Any

import pytest

from pd_eagle.plan import cuda_answers
from pd_eagle.workers import forked_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class ScriptedEngine:
    """SGLang's override point, and what it does with the function that a scheduler runs."""

    @classmethod
    def _launch_scheduler_processes(
        cls, server_args: Any, port_args: Any, run_scheduler: Callable[..., Any], **more: Any
    ) -> Any:
        reader, writer = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.Process(target=run_scheduler, args=(writer,))
        child.start()
        child.join()
        return reader.recv(), cuda_answers._answers.active, more


def scheduler(writer: Any) -> None:
    writer.send((os.getppid(), cuda_answers._answers.active, multiprocessing.get_start_method()))


@pytest.fixture(autouse=True)
def _answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    method = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)  # as SGLang does
    monkeypatch.setattr(cuda_answers._answers, "active", True)
    yield
    multiprocessing.set_start_method(method, force=True)


def test_its_processes_are_forked_and_ask_cuda_itself() -> None:
    engine = forked_engine.forking(ScriptedEngine)
    told, answering, more = engine._launch_scheduler_processes(1, 2, scheduler, placement_group=3)
    assert told == (os.getpid(), False, "fork")
    assert answering is True  # until all have been forked
    assert cuda_answers._answers.active is False
    assert more == {"placement_group": 3}
    assert engine.spawned_because is None


def test_they_are_spawned_where_cuda_was_touched(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(forked_engine, "why_cuda_is_not_untouched", lambda: "a script says so")
    engine = forked_engine.forking(ScriptedEngine)
    (_, answering, method), _, _ = engine._launch_scheduler_processes(1, 2, scheduler)
    assert (answering, method) == (False, "spawn")
    assert engine.spawned_because == "a script says so"
    assert "the scheduler is spawned: a script says so" in caplog.text
