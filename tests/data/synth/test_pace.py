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


def test_without_limits_nobody_waits() -> None:
    pace = Pace(clock=Clock())
    assert [pace.reserve(10**6) for _ in range(5)] == [0.0] * 5


def test_requests_are_spread_over_the_minute() -> None:
    clock = Clock()
    pace = Pace(requests=30, clock=clock)
    assert [pace.reserve(1) for _ in range(4)] == [0.0, 2.0, 4.0, 6.0]
    clock.now += 100  # idle time is not saved up for a burst
    assert [pace.reserve(1) for _ in range(3)] == [0.0, 2.0, 4.0]


def test_tokens_are_paid_for_by_those_who_come_after() -> None:
    clock = Clock()
    pace = Pace(tokens=600, clock=clock)  # ten a second
    assert pace.reserve(50) == 0.0
    assert pace.reserve(20) == 5.0
    pace.correct(10)  # the first took more than was thought
    assert pace.reserve(1) == pytest.approx(8.0)
    pace.correct(-10)
    assert pace.reserve(1) == pytest.approx(8.0)  # not before those who came earlier
    assert pace.reserve(1) == pytest.approx(8.1)


def test_what_one_is_told_holds_for_all() -> None:
    clock = Clock()
    pace = Pace(requests=60, clock=clock)
    pace.hold(30)
    pace.hold(10)  # a later, shorter one does not take it back
    assert pace.held() == 30
    assert [pace.reserve(1) for _ in range(3)] == [30.0, 31.0, 32.0]


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
