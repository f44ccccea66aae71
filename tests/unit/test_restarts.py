"""How often a worker was restarted lately: by the time it served, not by the clock alone."""

from __future__ import annotations

import pytest

from pd_eagle.workers.restarts import RestartHistory, RestartPolicy


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def crash_after(history: RestartHistory, clock: Clock, served_s: float, start_s: float) -> None:
    history.came_up()
    clock.now_s += served_s
    history.went_down()
    history.add()
    clock.now_s += start_s


def test_a_restart_is_forgotten_after_a_window_of_serving() -> None:
    clock = Clock()
    history = RestartHistory(300.0, clock)
    history.add()
    history.came_up()
    clock.now_s += 299.0
    assert history.recent == 1
    clock.now_s += 1.0
    assert history.recent == 0


def test_restarts_leave_the_window_one_by_one() -> None:
    clock = Clock()
    history = RestartHistory(300.0, clock)
    for _ in range(3):
        crash_after(history, clock, served_s=100.0, start_s=0.0)
    history.came_up()
    counts = []
    for _ in range(4):
        counts.append(history.recent)
        clock.now_s += 100.0
    assert counts == [3, 2, 1, 0]


def test_a_slow_start_does_not_hide_a_crash_loop() -> None:
    clock = Clock()
    history = RestartHistory(300.0, clock)
    for _ in range(6):
        crash_after(history, clock, served_s=1.0, start_s=600.0)
    assert history.recent == 6


@pytest.mark.parametrize(("tries", "least", "most"), [(0, 45, 75), (1, 90, 150), (9, 675, 1125)])
def test_a_worker_that_was_given_up_is_tried_more_and_more_seldom(
    tries: int, least: float, most: float
) -> None:
    waits = [RestartPolicy().given_up_s(tries) for _ in range(100)]
    assert least <= min(waits)
    assert max(waits) <= most
