"""A frozen heap is not walked by the garbage collector."""

from __future__ import annotations

import gc
import weakref

from pd_eagle.workers import gc_freezing


class Cycle:
    def __init__(self) -> None:
        self.me = self


def test_what_exists_is_permanent_and_garbage_is_not() -> None:
    before = gc.get_freeze_count()
    kept = [Cycle() for _ in range(1000)]
    garbage = weakref.ref(Cycle())
    try:
        gc_freezing.freeze()
        assert garbage() is None
        assert gc.get_freeze_count() >= before + len(kept)
        assert not any(isinstance(one, Cycle) for one in gc.get_objects()), "still walked"
    finally:
        gc.unfreeze()
