"""Spikes, steps and samples that are left out: when it is said, when it is too much."""

import json
import random

import pytest

from oculi.data.loader import BadSample
from oculi.errors import BadSamplesError
from oculi.training.monitor import IN_A_ROW, LEAST, WINDOW, Monitor


def noise(count: int, seed: int = 0, level: float = 2.0) -> list[float]:
    dice = random.Random(seed)
    return [dice.gauss(level, 0.1) for _ in range(count)]


def bad(*positions: int) -> list[BadSample]:
    return [BadSample(p, f"row-{p}", "rows.json", f"image {p} is damaged") for p in positions]


def test_a_loss_far_above_the_last_ones_is_a_spike() -> None:
    monitor = Monitor()
    assert not any(monitor.spike(loss) for loss in noise(200))
    assert monitor.spike(2.55) is None  # within six deviations
    found = monitor.spike(20.0)
    assert found is not None and found["loss"] == 20.0
    assert found["mean"] == pytest.approx(2.0, abs=0.05)
    assert found["deviation"] == pytest.approx(0.1, rel=0.2)
    assert monitor.spike(0.1) is None  # downwards nothing is wrong


def test_a_new_level_is_soon_the_usual_one() -> None:
    monitor = Monitor()
    for loss in noise(WINDOW):
        monitor.spike(loss)
    spikes = [monitor.spike(loss) is not None for loss in noise(WINDOW, level=4.0)]
    assert spikes[0] and sum(spikes) < 10 and not any(spikes[10:])


def test_the_beginning_is_not_judged() -> None:
    monitor = Monitor()
    assert not any(monitor.spike(loss) for loss in [0.1] * (LEAST - 1))
    assert monitor.spike(50.0) is None
    level = Monitor()
    for _ in range(WINDOW):
        level.spike(1.0)
    assert level.spike(1.05) is None and level.spike(1.07) is not None  # equal losses are no scale


def test_the_state_goes_on_where_it_was() -> None:
    whole, first = Monitor(), Monitor()
    losses = noise(60)
    for number, loss in enumerate(losses):
        whole.spike(loss)
        if number < 40:
            first.spike(loss)
    whole.samples(0, 8, bad(3), "x")
    first.samples(0, 8, bad(3), "x")
    second = Monitor(json.loads(json.dumps(first.state())))
    for loss in losses[40:]:
        second.spike(loss)
    assert second.state() == whole.state() and whole.state()["losses"] == losses
    assert second.spike(9.0) == whole.spike(9.0) is not None
    assert Monitor({}).state() == Monitor().state()


def test_skips_are_counted_in_a_row() -> None:
    monitor = Monitor()
    assert [monitor.skip(2), monitor.skip(2)] == [True, True]
    monitor.spike(1.0)  # a step that was finite
    assert [monitor.skip(2), monitor.skip(2), monitor.skip(2)] == [True, True, False]
    assert monitor.skipped == 5


def test_a_share_of_bad_samples_is_too_much() -> None:
    monitor = Monitor()
    for step in range(50):  # 10 of 1600 at last: under 1 %
        monitor.samples(step * 32, 32, bad(step * 32) if step % 5 == 0 else [], "x")
    assert (monitor.drawn, monitor.bad) == (1600, 10)
    for step in range(50, 56):
        monitor.samples(step * 32, 32, bad(step * 32), "x")
    for step in range(56, 58):
        monitor.samples(step * 32, 32, bad(step * 32), "x")
    with pytest.raises(BadSamplesError) as caught:
        monitor.samples(58 * 32, 32, bad(58 * 32, 58 * 32 + 1), "bad-samples.jsonl")
    said = str(caught.value)
    assert "20 of 1888 samples, more than 1%, cannot be used" in said
    assert "is damaged; all are listed in bad-samples.jsonl" in said and "\n" not in said
    assert caught.value.exit_code == 3


def test_few_samples_may_hold_a_bad_one() -> None:
    """One of eight is more than 1 %, but no reason to stop."""
    monitor = Monitor()
    for step in range(10):
        monitor.samples(step * 8, 8, bad(step * 8 + 2), "x")
    with pytest.raises(BadSamplesError, match="11 of 88"):
        monitor.samples(80, 8, bad(82), "x")


def test_a_row_of_bad_samples_is_too_much() -> None:
    monitor = Monitor({"drawn": 1_000_000})
    for first in range(0, IN_A_ROW - 4, 32):
        monitor.samples(first, 32, bad(*range(first, first + 32)), "x")
    assert monitor.bad == 96
    again = Monitor(monitor.state())
    monitor.samples(96, 32, bad(96, 97, 98, *range(100, 128)), "x")  # 99 in a row, then a good one
    with pytest.raises(BadSamplesError, match="100 samples in a row"):
        again.samples(96, 32, bad(96, 97, 98, 99), "x")
