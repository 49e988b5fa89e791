"""Levels 3 to 5 do not pay a model that does not look.

Tried are the best constant answer, for each kind and for each wording of it, and, on multiple
choice, what one can tell from the options alone.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from difflib import SequenceMatcher

import pytest
from checks import NAME, Item, assert_even, assert_share, items, of_kind, open_questions

from oculi.testbed import playroom
from oculi.testbed.questions import LETTERS
from oculi.testbed.vocabulary import COLOURS, PLACES, SHAPES, SIZES

N = 1500
LEVELS = (3, 4, 5)
CASES = [
    (level, split, kind)
    for level in LEVELS
    for split in playroom.splits(level)
    if split != "test"
    for kind in playroom.kinds(level, split)
]
# What guessing gives; a kind not named here has hundreds of answers, and none is common.
CHANCE = {
    "word place": 1 / 9, "word count": 1 / 3, "value": 1 / 18, "difference": 1 / 16,
    "count": 1 / 5, "relation": 1 / 4, "existence": 1 / 2,
}  # fmt: skip
_NAMES = "|".join(sorted((*PLACES, *COLOURS, *SHAPES, *SIZES), key=len, reverse=True))
_VARIABLE = re.compile(rf"\b(?:(?:{_NAMES})(?:es|s)?|[A-Z]{{1,6}}|[0-9]+)\b")


def world(level: int, split: str) -> tuple[Item, ...]:
    return items(level, split, N)


def wording(text: str) -> str:
    """A question without the words that change: names, places, texts, labels."""
    return _VARIABLE.sub("#", text)


def chance(kind: str, split: str, text: str = "") -> float:
    if kind == "attribute":
        about = re.search("colour|shape|size", text)[0]
        return 1 / {"colour": 6 if split == "pairs" else 8, "shape": 6, "size": 3}[about]
    if split == "pairs" and kind == "comparison":
        return 1 / 12  # one of the two named is one of six, and the answer half of the time
    return CHANCE.get(kind, 0.02)


@pytest.mark.parametrize(("level", "split", "kind"), CASES)
def test_no_constant_answer_pays(level: int, split: str, kind: str) -> None:
    by_wording = defaultdict(list)
    questions = open_questions(world(level, split), kind)
    for question in questions:
        by_wording[wording(question.text)].append(question)
    assert len(by_wording) >= 4
    for some in by_wording.values():
        answers = Counter(question.answer for question in some)
        assert_share(answers.most_common(1)[0][1], len(some), chance(kind, split, some[0].text))
    if kind != "attribute":
        answers = Counter(question.answer for question in questions)
        assert_share(answers.most_common(1)[0][1], len(questions), chance(kind, split))


@pytest.mark.parametrize(("level", "split"), [(4, "train"), (5, "train"), (5, "pairs")])
def test_a_comparison_names_the_answer_first_half_of_the_time(level: int, split: str) -> None:
    first = []
    for question in open_questions(world(level, split), "comparison"):
        names = [" ".join(pair) for pair in NAME.findall(question.text)]
        names = names or re.findall(r"\b[A-Z]{1,3}\b", question.text)
        assert len(names) == 2
        first.append("12"[names.index(question.answer)])
    assert_even(first, "12")


def likeness(options: tuple[str, ...]) -> list[float]:
    return [
        sum(SequenceMatcher(None, a, b, autojunk=False).ratio() for b in options) for a in options
    ]


def number(option: str) -> float:
    return float(option) if option.isdigit() else len(option)


GUESSES: dict[str, Callable[[tuple[str, ...]], list[float]]] = {
    "most like the others": likeness,
    "least like the others": lambda options: [-found for found in likeness(options)],
    "longest": lambda options: [len(option) for option in options],
    "shortest": lambda options: [-len(option) for option in options],
    "largest": lambda options: [number(option) for option in options],
    "smallest": lambda options: [-number(option) for option in options],
    "first": lambda options: [-spot for spot in range(len(options))],
    "last": lambda options: list(range(len(options))),
}


@pytest.mark.parametrize("guess", GUESSES)
@pytest.mark.parametrize("level", LEVELS)
def test_options_do_not_tell_the_answer(level: int, guess: str) -> None:
    tried = []
    for kind in playroom.kinds(level):
        chosen = [one.question for one in of_kind(world(level, "train"), kind)]
        chosen = [question for question in chosen if question.options]
        hits = 0.0
        for question in chosen:
            scores = GUESSES[guess](question.options)
            best = [spot for spot, score in enumerate(scores) if score > max(scores) - 1e-9]
            hits += (LETTERS.index(question.answer) in best) / len(best)
        even = sum(1 / len(question.options) for question in chosen)
        assert_share(hits, len(chosen), even / len(chosen))
        tried.append((hits, len(chosen), even))
    hits, n, even = (sum(column) for column in zip(*tried, strict=True))
    assert_share(hits, n, even / n)
