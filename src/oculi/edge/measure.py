"""Times of a runner: until the first token, for each further one, and of whole answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from oculi.edge.runtime import Content, Runner, Times
from oculi.edge.sampling import Decoding


@dataclass(frozen=True)
class Measured:
    """One question, asked again and again; seconds.

    Attributes:
        precision: of the weights. prompt, new_tokens: tokens. repeats: answers.
        first_p50, first_p95: from the conversation (pictures decoded) to the first token.
        vision: of it, the vision graph; step: each further token; answer: a whole answer; medians.
        answers_per_second: the inverse of ``answer``.
    """

    precision: str
    prompt: int
    new_tokens: int
    repeats: int
    first_p50: float
    first_p95: float
    vision: float
    step: float
    answer: float
    answers_per_second: float

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For the terminal."""
        return [
            f"{self.precision}, prompt of {self.prompt} tokens, {self.new_tokens} new ones, "
            f"{self.repeats} answers",
            f"first token: {1e3 * self.first_p50:.1f} ms, 95 % within {1e3 * self.first_p95:.1f} ms "
            f"(vision {1e3 * self.vision:.1f} ms)",
            f"each further token: {1e3 * self.step:.2f} ms",
            f"answers a second: {self.answers_per_second:.2f}",
        ]


@dataclass(frozen=True)
class Once:
    """One answer: its ids, tokens of its prompt, and seconds as of ``Measured``."""

    ids: list[int]
    prompt: int
    vision: float
    times: Times
    seconds: float


def ask(runner: Runner, messages: Sequence[tuple[str, Sequence[Content]]], new_tokens: int) -> Once:
    """One greedy answer of exactly so many tokens."""
    times = Times()
    began = time.perf_counter()
    prompt = runner.prompt(messages)
    ids = list(runner.stream(prompt, Decoding(new_tokens, min_new_tokens=new_tokens), times))
    seconds = time.perf_counter() - began
    return Once(ids, len(prompt.ids), prompt.vision_seconds, times, seconds)


def measure(
    runner: Runner,
    messages: Sequence[tuple[str, Sequence[Content]]],
    new_tokens: int,
    repeats: int,
) -> Measured:
    """Ask once to warm up, then ``repeats`` times; raises as ``Runner.prompt`` and ``stream``."""
    ask(runner, messages, new_tokens)
    return summary(runner, [ask(runner, messages, new_tokens) for _ in range(repeats)])


def summary(runner: Runner, asked: Sequence[Once]) -> Measured:
    """Medians and percentiles of answers."""
    first = [one.times.first for one in asked]
    steps = [step for one in asked for step in one.times.steps]
    answer = float(np.median([one.seconds for one in asked]))
    return Measured(
        precision=runner.settings.precision,
        prompt=asked[0].prompt,
        new_tokens=len(asked[0].ids),
        repeats=len(asked),
        first_p50=float(np.percentile(first, 50)),
        first_p95=float(np.percentile(first, 95)),
        vision=float(np.median([one.vision for one in asked])),
        step=float(np.median(steps)) if steps else 0.0,
        answer=answer,
        answers_per_second=1 / answer,
    )
