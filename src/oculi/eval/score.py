"""Exact match with its uncertainty, and what a model that ignores the image would get."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Z = 1.959964  # normal quantile of a 95 % interval


@dataclass(frozen=True)
class Score:
    """Share of correct answers with its 95 % interval (Wilson's, right for small n and near 0, 1)."""

    score: float
    low: float
    high: float
    correct: int
    n: int


def wilson(correct: int, n: int, z: float = Z) -> Score:
    """Wilson score interval (1927) of ``correct`` out of ``n``; raises ValueError for n = 0."""
    if n < 1:
        raise ValueError("a score needs at least one answer")
    p = correct / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # Rounding must not push a bound past the score itself at 0 and 1.
    return Score(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)), correct, n)


@dataclass(frozen=True)
class Mean:
    """Mean of a measure over answers with its 95 % interval, normal."""

    mean: float
    low: float
    high: float
    n: int


def mean_interval(values: Sequence[float], z: float = Z) -> Mean:
    """Mean and interval of at least one value; raises ValueError for none."""
    n = len(values)
    if n < 1:
        raise ValueError("a mean needs at least one answer")
    mean = math.fsum(values) / n
    spread = math.fsum((value - mean) ** 2 for value in values)
    half = z * math.sqrt(spread / (n - 1) / n) if n > 1 else 0.0
    return Mean(mean, mean - half, mean + half, n)


def exact(prediction: str, answer: str) -> bool:
    """Equal after stripping white space at both ends; case and punctuation count."""
    return prediction.strip() == answer.strip()


def majority(answers: Sequence[str]) -> tuple[str, float]:
    """The commonest answer and its share: what a constant reaches."""
    answer, count = Counter(answer.strip() for answer in answers).most_common(1)[0]
    return answer, count / len(answers)


@dataclass(frozen=True)
class Scoring:
    """How a task's answers are judged, and what its results come to beside the share that is right.

    Attributes:
        name: what ``result.json`` calls the judgement.
        correct: (prediction, true answer) -> whether it is right.
        summary: rows of ``answers.jsonl`` -> further entries of ``result.json``.
        lines: ``result.json`` -> what people are told of those entries.
        measure: (prediction, true answer) -> what is measured of an answer beside that, by name.
    """

    name: str
    correct: Callable[[str, str], bool]
    summary: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]] = lambda rows: {}
    lines: Callable[[Mapping[str, Any]], list[str]] = lambda result: []
    measure: Callable[[str, str], dict[str, float]] | None = None


EXACT = Scoring("exact", exact)
