"""Intervals of 95 %, and what they say about a claim. No statistics library: each is a few lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from oculi.ablate.spec import Direction
from oculi.eval.score import wilson

Verdict = Literal["confirmed", "not confirmed", "not decidable"]
RESAMPLES = 10_000

# Student's t at 97.5 %, for 1, 2, ... degrees of freedom.
_T = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930,
)  # fmt: skip
MOST_SEEDS = len(_T) + 1


@dataclass(frozen=True)
class Interval:
    """An effect and its 95 % interval."""

    effect: float
    low: float
    high: float


def student(values: Sequence[float]) -> Interval:
    """Mean of independent values, as paired differences over seeds; raises ValueError for one alone."""
    n = len(values)
    if not 2 <= n <= MOST_SEEDS:
        raise ValueError(f"an interval over {n} values: it needs 2 to {MOST_SEEDS}")
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = _T[n - 2] * deviation / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def bootstrap(per_question_SQ: NDArray[np.float64], seed: int = 0) -> Interval:
    """Mean over seeds and questions; the percentile interval of resampled questions.

    Args:
        per_question_SQ: the paired difference for each seed and question. A question drawn again is
            drawn for all seeds: they were asked the same ones.
        seed: of the dice.
    """
    means_Q = per_question_SQ.mean(0)
    dice = np.random.default_rng(seed)
    questions = len(means_Q)
    drawn = [means_Q[dice.integers(0, questions, questions)].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(means_Q.mean()), float(low), float(high))


def wider(a: Interval, b: Interval) -> Interval:
    """The effect of the first with the further bound of both at each end."""
    return Interval(a.effect, min(a.low, b.low), max(a.high, b.high))


def newcombe(hits: int, n: int, other_hits: int, other_n: int) -> Interval:
    """Difference of two independent shares (Newcombe 1998, method 10, from Wilson's intervals)."""
    a, b = wilson(hits, n), wilson(other_hits, other_n)
    effect = a.score - b.score
    return Interval(
        effect,
        effect - math.hypot(a.score - a.low, b.high - b.score),
        effect + math.hypot(a.high - a.score, b.score - b.low),
    )


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's: Pearson's of the ranks, ties sharing theirs; 0 where one side is all ties."""
    a, b = _ranks(x), _ranks(y)
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale else 0.0


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values, float)
    below = (array[:, None] > array).sum(1)
    same = (array[:, None] == array).sum(1)
    ranks: NDArray[np.float64] = below + (same + 1) / 2
    return ranks


def verdict(interval: Interval, direction: Direction, threshold: float) -> Verdict:
    """What the interval says: all of it where the claim puts the effect, none of it, or some."""
    low, high = interval.low, interval.high
    if direction == "below":
        low, high = -high, -low
    if direction == "within":
        inside = -threshold <= low and high <= threshold
        outside = low > threshold or high < -threshold
    else:
        inside, outside = low > threshold, high <= threshold
    return "confirmed" if inside else "not confirmed" if outside else "not decidable"
