"""The form of a Playroom question, and how an open one becomes multiple choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from oculi.testbed.scene import Traits
from oculi.testbed.vocabulary import COLOURS, PLACES, SHAPES, SIZES, Dice

T = TypeVar("T")

LETTERS = "ABCD"
MARKS = ("{}. {}", "{}) {}", "({}) {}")
VALUES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": SIZES,
    "place": PLACES,
}
_CLOSINGS = (
    "Answer with the letter.",
    "Answer with the letter of the right option.",
    "Which letter is right?",
    "Give only the letter.",
)


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its one right answer; `options` is empty unless it is multiple choice.

    For multiple choice `text` holds the lettered options and `answer` is the letter.
    """

    kind: str
    text: str
    answer: str
    options: tuple[str, ...] = ()


def as_choice(question: Question, wrong: Sequence[str], roll: Dice, n: int = 4) -> Question:
    """Return `question` with its answer among up to `n` shuffled options, lettered from A."""
    others = [option for option in dict.fromkeys(wrong) if option != question.answer]
    options = roll.shuffled([question.answer, *roll.some(others, n - 1)])
    mark = roll.pick(MARKS)
    lines = [
        mark.format(letter, option)
        for letter, option in zip(LETTERS[: len(options)], options, strict=True)
    ]
    text = "\n".join([question.text, *lines, roll.pick(_CLOSINGS)])
    answer = LETTERS[options.index(question.answer)]
    return Question(question.kind, text, answer, tuple(options))


def changed(
    trait: Traits, roll: Dice, attributes: Sequence[str], pairs: Sequence[tuple[str, str]]
) -> Traits:
    """Return `trait` with one of `attributes` changed; its pair stays among `pairs`."""
    while True:
        attribute = roll.pick(attributes)
        fields = {
            "colour": trait.colour, "shape": trait.shape, "size": trait.size, "place": trait.place,
        }  # fmt: skip
        fields[attribute] = roll.pick(VALUES[attribute])
        other = Traits(**fields)
        same = other.value(attribute) == trait.value(attribute)
        if not same and (other.pair == trait.pair or other.pair in pairs):
            return other


def crossed(truth: T, first: Callable[[T], T], second: Callable[[T], T]) -> list[T]:
    """Return `truth` with either change and with both: wrong options that give nothing away.

    Were each option one change from the truth, the truth would be the one most like all others;
    so each of the four has two neighbours and an opposite. The changes must not undo each other.
    """
    return [first(truth), second(truth), second(first(truth))]
