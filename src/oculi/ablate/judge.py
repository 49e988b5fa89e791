"""From what runs came to, to a claim's effect, interval and verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from oculi.ablate import intervals
from oculi.ablate.intervals import Interval
from oculi.ablate.metrics import Floats, shown_difference
from oculi.ablate.runs import Measured
from oculi.ablate.spec import Claim, Contrast, Correlation, Shares
from oculi.errors import AblationError

Results = Mapping[tuple[str, int], Measured]  # by row and seed
QUICK = "quick: not a result"


class Missing(Exception):
    """A run lacks the number that a claim is about, for it collapsed or never got there."""


@dataclass(frozen=True)
class Judged:
    """A claim after the last run.

    Attributes:
        interval: of its effect; None where a run lacks the number, and ``why`` names it.
        verdict: by the claim's rule. sample: what it was measured on.
    """

    claim: Claim
    interval: Interval | None
    verdict: str
    sample: str
    why: str = ""

    def shown(self) -> str:
        """Effect and interval in the metric's unit."""
        if self.interval is None:
            return self.why
        found = self.interval
        return shown_difference(self.claim.effect.metric, found.effect, found.low, found.high)

    def to_json(self, quick: bool, seeds: int) -> dict[str, Any]:
        """For ``report.json``."""
        found = self.interval
        return {
            **self.claim.to_json(seeds),
            "effect_found": found and found.effect,
            "interval": found and [found.low, found.high],
            "verdict": QUICK if quick else self.verdict,
            "sample": self.sample,
            **({"why": self.why} if self.why else {}),
        }


def judge(claim: Claim, results: Results, seeds: Sequence[int]) -> Judged:
    """Apply a claim's rule to the runs of all seeds."""
    sample = claim.effect.sample(len(seeds))
    try:
        match claim.effect:
            case Contrast() as effect:
                interval, questions = _contrast(effect, results, seeds)
                sample += f" x {questions} questions" if questions else ""
            case Shares() as effect:
                interval = _shares(effect, results, seeds)
            case Correlation() as effect:
                interval = _correlation(effect, results, seeds)
    except Missing as missing:
        return Judged(claim, None, "not decidable", sample, str(missing))
    found = intervals.verdict(interval, claim.direction, claim.threshold)
    return Judged(claim, interval, found, sample)


def _value(results: Results, row: str, seed: int, metric: str) -> float:
    run = results[row, seed]
    if metric not in run.values:
        raise Missing(f"{row}-seed{seed} has no {metric} ({run.ended})")
    return run.values[metric]


def _contrast(
    effect: Contrast, results: Results, seeds: Sequence[int]
) -> tuple[Interval, int | None]:
    """The interval, and the number of questions if it covers those as well."""
    per_seed = [
        sum(term.weight * _value(results, term.row, seed, term.metric) for term in effect.terms)
        for seed in seeds
    ]
    per_question = _per_question(effect, results, seeds)
    if per_question is None:
        if len(seeds) == 1:
            raise Missing(f"one seed has no interval for {effect.metric}")
        return intervals.student(per_seed), None
    over_questions = intervals.bootstrap(per_question)
    if len(seeds) == 1:
        return over_questions, per_question.shape[1]
    both = intervals.wider(intervals.student(per_seed), over_questions)
    return both, per_question.shape[1]


def _per_question(effect: Contrast, results: Results, seeds: Sequence[int]) -> Floats | None:
    """The contrast of each seed and question; None unless all of its terms are about answers.

    Raises:
        AblationError: they are not about the same number of questions.
    """
    answers = [
        [results[term.row, seed].answers.get(term.metric) for term in effect.terms]
        for seed in seeds
    ]
    known = [[a for a in of_seed if a is not None] for of_seed in answers]
    if any(len(of_seed) < len(effect.terms) for of_seed in known):
        return None
    if len({len(a) for of_seed in known for a in of_seed}) > 1:
        raise AblationError(f"runs were asked different numbers of questions for {effect.metric}")
    weights = np.array([term.weight for term in effect.terms])
    found: Floats = np.einsum("t,stq->sq", weights, np.array(known, float))
    return found


def _shares(effect: Shares, results: Results, seeds: Sequence[int]) -> Interval:
    def hits(rows: Sequence[str]) -> tuple[int, int]:
        found = [_value(results, row, seed, effect.metric) for row in rows for seed in seeds]
        return int(sum(found)), len(found)

    return intervals.newcombe(*hits(effect.rows_of), *hits(effect.versus))


def _correlation(effect: Correlation, results: Results, seeds: Sequence[int]) -> Interval:
    found = intervals.student(
        [
            intervals.rank_correlation(
                [_value(results, row, seed, effect.x) for row in effect.rows],
                [_value(results, row, seed, effect.y) for row in effect.rows],
            )
            for seed in seeds
        ]
    )
    return Interval(found.effect, max(-1.0, found.low), min(1.0, found.high))
