"""What a report shows, between reading a run folder and laying out a page.

All text in here comes from files that anyone may have written: the page escapes it, and nothing
else may. Numbers are floats already, so they need no escaping; they may be NaN where it says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from oculi.eval.score import Score

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class StageLog:
    """The metrics of one stage.

    Attributes:
        name: of the stage. planned: its number of steps, None if nobody said.
        steps: the logged ones, rising. values: per metric, as many as ``steps``, NaN for a gap.
        objectives: keys of ``values`` that are objectives' losses, in the order they were met.
    """

    name: str
    planned: int | None
    steps: Floats
    values: dict[str, Floats]
    objectives: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """One question and what became of it; ``picture`` is a data URI, ``note`` says why not."""

    group: str
    question: str
    answer: str
    prediction: str
    correct: bool
    picture: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Part:
    """A score, of a whole task or of one kind of question, and what a constant answer reaches."""

    score: Score | None
    constant: float | None = None


@dataclass(frozen=True)
class Eval:
    """One evaluation; ``shown`` and ``failed`` are a choice out of its ``read`` first answers."""

    name: str
    task: str
    stage: str
    blind: bool
    whole: Part
    groups: dict[str, Part]
    shown: Sequence[Answer] = ()
    failed: Sequence[Answer] = ()
    read: int = 0


@dataclass(frozen=True)
class Measure:
    """A mean over restored pictures, or a difference of two, with its 95 % interval."""

    label: str
    measure: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Restored:
    """What ``oculi reconstruct`` has made; ``picture`` is a data URI, ``note`` says why not."""

    command: str
    pictures: int
    measures: Sequence[Measure]
    picture: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Shown:
    """What an objective has shown at a checkpoint.

    Attributes:
        stage, step: when. objective: whose. images: how many the ``scores`` are means over.
        rows: what the rows of ``picture`` are, a data URI; ``note`` says why there is none.
    """

    stage: str
    step: int
    objective: str
    images: int
    scores: dict[str, float]
    rows: Sequence[str] = ()
    picture: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Contents:
    """All of a report.

    Attributes:
        title, summary, recipe: from the recipe; ``recipe`` is the file's text, "" if there is none.
        facts: what the header says, as (name, value).
        stages, evals: in the order they are shown.
        restored: pictures restored from what the LLM is given, if they were.
        shown: what objectives have shown at checkpoints.
        notes: what is missing, damaged or left out.
    """

    title: str
    summary: str = ""
    recipe: str = ""
    facts: Sequence[tuple[str, str]] = ()
    stages: Sequence[StageLog] = ()
    evals: Sequence[Eval] = ()
    restored: Restored | None = None
    shown: Sequence[Shown] = ()
    notes: Sequence[str] = field(default_factory=tuple)
