"""What a task is: questions, and how their answers are judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from oculi.data.sample import IMAGE, ImageSource, Message
from oculi.eval.score import EXACT, Scoring


@dataclass(frozen=True)
class Question:
    """One question of a conversation, with the true history before it.

    Attributes:
        id: the sample's. turn: number of the answer in it, from 1. group: for scores by kind.
        messages: up to and including the question. images: of the conversation so far.
        text: the question. answer: the true answer. modality: of the images.
    """

    id: str
    turn: int
    group: str
    messages: tuple[Message, ...]
    images: tuple[ImageSource, ...]
    text: str
    answer: str
    modality: str = IMAGE


@dataclass(frozen=True)
class Task:
    """A name and its questions.

    Attributes:
        load: makes the first ``limit``, or all.
        scoring: how answers are judged.
    """

    name: str
    load: Callable[[int | None], list[Question]]
    scoring: Scoring = EXACT
