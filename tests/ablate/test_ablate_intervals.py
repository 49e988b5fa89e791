"""Intervals against numbers worked out by hand or printed by their author; verdicts at their borders."""

import math

import numpy as np
import pytest

from oculi.ablate.intervals import (
    Interval,
    bootstrap,
    newcombe,
    rank_correlation,
    student,
    verdict,
    wider,
)


@pytest.mark.parametrize(
    ("values", "mean", "half"),
    [
        ([1.0, 2.0, 3.0], 2.0, 4.3027 / math.sqrt(3)),  # deviation 1, two degrees of freedom
        ([0.0, 2.0], 1.0, 12.7062),  # deviation sqrt(2), over sqrt(2)
        ([1.0, 1.0, 2.0, 2.0, 4.0], 2.0, 2.7764 * math.sqrt(1.5 / 5)),
    ],
)
def test_student(values: list[float], mean: float, half: float) -> None:
    found = student(values)
    assert found.effect == pytest.approx(mean)
    assert (found.low, found.high) == pytest.approx((mean - half, mean + half))


@pytest.mark.parametrize("values", [[], [1.0], [0.0] * 21])
def test_student_needs_some_values(values: list[float]) -> None:
    with pytest.raises(ValueError, match="needs 2 to 20"):
        student(values)


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [  # Newcombe 1998, table II, method 10
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((10, 10, 0, 10), 0.6075, 1.0000),
        ((0, 10, 0, 10), -0.2775, 0.2775),  # the upper bounds of Wilson's for 0 of 10
    ],
)
def test_newcombe(counts: tuple[int, int, int, int], low: float, high: float) -> None:
    found = newcombe(*counts)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_bootstrap_is_normal_for_many_questions() -> None:
    differences = np.array([[1.0] * 60 + [-1.0] * 20 + [0.0] * 320])
    found = bootstrap(differences)
    error = differences.std() / math.sqrt(400)
    assert found.effect == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1 - 1.96 * error, abs=0.005)
    assert found.high == pytest.approx(0.1 + 1.96 * error, abs=0.005)


def test_bootstrap_draws_a_question_for_all_seeds() -> None:
    """Three seeds that agree on every question are no more questions than one of them."""
    one = np.array([[1.0, 0.0, 0.0, -1.0] * 25])
    three = bootstrap(np.repeat(one, 3, axis=0))
    assert (three.low, three.high) == pytest.approx((bootstrap(one).low, bootstrap(one).high))


def test_wider_takes_the_further_bounds() -> None:
    assert wider(Interval(1, 0, 3), Interval(1, -1, 2)) == Interval(1, -1, 3)


def test_rank_correlation() -> None:
    assert rank_correlation([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: 4.5 / sqrt(4.5 * 5).
    assert rank_correlation([1, 2, 2, 5], [0, 2, 1, 9]) == pytest.approx(4.5 / math.sqrt(22.5))
    assert rank_correlation([1, 1], [1, 2]) == 0


@pytest.mark.parametrize(
    ("low", "high", "direction", "threshold", "wanted"),
    [
        (0.2, 0.4, "above", 0.1, "confirmed"),
        (0.1, 0.4, "above", 0.1, "not decidable"),  # it touches the border
        (-0.4, 0.1, "above", 0.1, "not confirmed"),
        (-0.4, -0.2, "above", 0.1, "not confirmed"),
        (0.05, 0.2, "above", 0.1, "not decidable"),
        (-0.4, -0.2, "below", 0.1, "confirmed"),
        (0.2, 0.4, "below", 0.1, "not confirmed"),
        (-0.05, 0.4, "below", 0.1, "not confirmed"),
        (-0.2, 0.4, "below", 0.1, "not decidable"),
        (-0.1, 0.1, "within", 0.1, "confirmed"),
        (0.2, 0.4, "within", 0.1, "not confirmed"),
        (-0.4, -0.2, "within", 0.1, "not confirmed"),
        (-0.4, 0.4, "within", 0.1, "not decidable"),
        (0.0, 0.0, "above", 0.0, "not confirmed"),  # no effect at all
        (-0.05, 0.4, "above", -0.1, "confirmed"),  # not worse
        (-0.2, 0.4, "above", -0.1, "not decidable"),
        (-0.4, 0.05, "below", -0.1, "confirmed"),
        (0.05, 0.2, "below", -0.1, "not decidable"),
        (0.2, 0.4, "below", -0.1, "not confirmed"),
    ],
)
def test_verdict(low: float, high: float, direction: str, threshold: float, wanted: str) -> None:
    assert verdict(Interval(0, low, high), direction, threshold) == wanted  # type: ignore[arg-type]
