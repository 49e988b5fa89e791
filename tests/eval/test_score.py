"""Scores with their uncertainty."""

import math

import pytest

from oculi.eval.score import Mean, exact, majority, mean_interval, wilson

# Newcombe (1998), table I, method 3, and R's prop.test(..., correct = FALSE).
KNOWN = [
    (81, 263, 0.3080, 0.2553, 0.3662),
    (15, 148, 0.1014, 0.0624, 0.1605),
    (0, 20, 0.0, 0.0, 0.1611),
    (1, 29, 0.0345, 0.0061, 0.1718),
    (29, 29, 1.0, 0.8830, 1.0),
    (50, 100, 0.5, 0.4038, 0.5962),
]


@pytest.mark.parametrize(("correct", "n", "score", "low", "high"), KNOWN)
def test_wilsons_interval(correct: int, n: int, score: float, low: float, high: float) -> None:
    found = wilson(correct, n)
    assert (found.correct, found.n) == (correct, n)
    values = (found.score, found.low, found.high)
    assert values == pytest.approx((score, low, high), abs=5e-5)


@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_the_interval_holds_the_score_and_stays_in_range(n: int) -> None:
    for correct in {0, 1, n // 2, n}:
        found = wilson(correct, n)
        assert 0 <= found.low <= found.score <= found.high <= 1
    assert wilson(0, n).high == pytest.approx(1 - wilson(n, n).low)


def test_no_answers_have_no_score() -> None:
    with pytest.raises(ValueError, match="at least one"):
        wilson(0, 0)


@pytest.mark.parametrize(
    ("prediction", "answer", "same"),
    [
        ("red", "red", True),
        (" red\n", "red", True),
        ("red", "\tred ", True),
        ("Red", "red", False),
        ("red.", "red", False),
        ("a  b", "a b", False),
        ("", "red", False),
        ("red square", "red", False),
    ],
)
def test_exact_match(prediction: str, answer: str, same: bool) -> None:
    assert exact(prediction, answer) is same


def test_majority_is_what_a_constant_reaches() -> None:
    assert majority(["a", "b", " a ", "c"]) == ("a", 0.5)
    assert majority(["x"]) == ("x", 1.0)
    assert majority(["b", "a"])[1] == 0.5


def test_a_mean_and_its_interval() -> None:
    """Against statistics by hand: 1, 2, 3, 4 deviate by the root of 5 / 3."""
    found = mean_interval([1.0, 2.0, 3.0, 4.0])
    half = 1.959964 * math.sqrt(5 / 3 / 4)
    assert (found.mean, found.n) == (2.5, 4)
    assert (found.low, found.high) == pytest.approx((2.5 - half, 2.5 + half))
    assert mean_interval([7.0]) == Mean(7.0, 7.0, 7.0, 1)
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])
