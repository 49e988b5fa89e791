"""The pace of requests, by a clock of its own."""

import threading
import time

import pytest

from oculi.data.synth.pace import Pace, Stopped


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def starts(pace: Pace, clock: Clock, *tokens: int) -> list[float]:
    """When requests start, from now, that all come now and take turns as soon as they may."""
    began, found = clock.now, []
    for each in tokens:
        while left := pace.take(each, began):
            clock.now += left
        found.append(clock.now - began)
    return found


def test_without_limits_nobody_waits() -> None:
    clock = Clock()
    assert starts(Pace(clock=clock), clock, *[10**6] * 5) == [0.0] * 5


def test_requests_are_spread_over_the_minute() -> None:
    clock = Clock()
    pace = Pace(requests=30, clock=clock)
    assert starts(pace, clock, 1, 1, 1, 1) == [0.0, 2.0, 4.0, 6.0]
    clock.now += 100  # idle time is not saved up for a burst
    assert starts(pace, clock, 1, 1, 1) == [0.0, 2.0, 4.0]


def test_who_wakes_late_does_not_delay_the_others() -> None:
    clock = Clock()
    pace = Pace(requests=30, clock=clock)
    began = clock.now
    assert (pace.take(1, began), pace.take(1, began)) == (0.0, 2.0)
    clock.now += 2.5
    assert (pace.take(1, began), pace.take(1, began)) == (0.0, 1.5)


def test_tokens_are_paid_for_by_those_who_come_after() -> None:
    clock = Clock()
    pace = Pace(tokens=600, clock=clock)  # ten a second
    assert starts(pace, clock, 50, 20) == [0.0, 5.0]
    pace.correct(10)  # the last took more than was thought
    assert pace.take(1, clock.now) == pytest.approx(3.0)
    pace.correct(-10)
    assert starts(pace, clock, 1, 1) == pytest.approx([2.0, 2.1])


def test_what_one_is_told_holds_for_all() -> None:
    clock = Clock()
    pace = Pace(requests=60, clock=clock)
    pace.hold(30)
    pace.hold(10)  # a later, shorter one does not take it back
    assert starts(pace, clock, 1, 1, 1) == [30.0, 31.0, 32.0]


def test_who_waited_when_told_to_hold_is_spread_behind_it() -> None:
    clock = Clock()
    pace = Pace(requests=30, tokens=60, clock=clock)
    began = clock.now
    assert [pace.take(5, began) for _ in range(4)] == [0.0, 5.0, 5.0, 5.0]
    clock.now += 0.1
    pace.hold(7)
    clock.now = began + 5
    assert [pace.take(5, began) for _ in range(3)] == pytest.approx([2.1] * 3)
    clock.now = began + 7.1
    assert starts(pace, clock, 5, 5, 5) == pytest.approx([0.0, 5.0, 10.0])  # paid for once


def test_threads_that_wait_start_one_by_one_after_a_hold() -> None:
    pace, began, found = Pace(requests=300), time.monotonic(), []

    def ask() -> None:
        pace.wait(1)
        found.append(time.monotonic() - began)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    pace.hold(0.4)
    for thread in threads:
        thread.join()
    assert len(found) == 4 and max(found) >= 0.8  # 0.45, 0.65, 0.85


def test_whoever_waits_hears_of_a_hold_and_of_the_end() -> None:
    pace = Pace(requests=600)
    pace.wait(1)
    pace.hold(0.2)
    began = time.monotonic()
    pace.wait(1)
    assert time.monotonic() - began >= 0.2
    threading.Timer(0.1, pace.stop).start()
    with pytest.raises(Stopped):
        pace.sleep(60)
    with pytest.raises(Stopped):
        pace.wait(1)
    assert pace.stopped and time.monotonic() - began < 30
