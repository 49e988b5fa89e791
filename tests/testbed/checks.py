"""What several tests of Playroom need: items by the thousand, what was said, and evenness."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache

from oculi.testbed import playroom
from oculi.testbed.playroom import Item
from oculi.testbed.questions import LETTERS, Question
from oculi.testbed.scene import Box
from oculi.testbed.vocabulary import COLOURS, HELD_OUT_PAIRS, PLACES, SHAPES, SIZES

HELD_OUT = set(HELD_OUT_PAIRS)
NAME = re.compile(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")
PLACE = re.compile(rf"\b({'|'.join(sorted(PLACES, key=len, reverse=True))})\b")


@cache
def items(level: int, split: str, n: int) -> tuple[Item, ...]:
    return tuple(playroom.item(level, split, index) for index in range(n))


def of_kind(some: Iterable[Item], *kinds: str) -> list[Item]:
    return [one for one in some if one.question.kind in kinds]


def open_questions(some: Iterable[Item], kind: str) -> list[Question]:
    return [one.question for one in of_kind(some, kind) if not one.question.options]


def replies(some: Iterable[Item], kind: str) -> list[str]:
    """The answers of a kind's open questions."""
    return [question.answer for question in open_questions(some, kind)]


def said(one: Item) -> str:
    """The answer as text, multiple choice or not."""
    question = one.question
    if not question.options:
        return question.answer
    return question.options[LETTERS.index(question.answer)]


def asked(one: Item) -> str:
    """The question without options."""
    return one.question.text.split("\n")[0]


def assert_even(values: Sequence[str], among: Sequence[str]) -> None:
    """Chi-square: four standard deviations above what even chances give is too much."""
    counts = Counter(values)
    assert set(counts) <= set(among)
    expected = len(values) / len(among)
    statistic = sum((counts[value] - expected) ** 2 / expected for value in among)
    free = len(among) - 1
    assert statistic < free + 4 * (2 * free) ** 0.5, counts


def assert_share(hits: float, n: int, share: float) -> None:
    """No more hits than four standard deviations above this share."""
    assert hits <= share * n + 4 * (share * (1 - share) * n) ** 0.5 + 1, (hits, n, share)


def where(centre: tuple[float, float], size: tuple[int, int]) -> str:
    """The name of the ninth of the picture that a point lies in."""
    column, row = (int(3 * at // length) for at, length in zip(centre, size, strict=True))
    return PLACES[3 * row + column]


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def truth_about_objects(one: Item) -> str:
    """Work an answer about objects out from the question's words and the scene alone."""
    scene, kind, text = one.scene, one.question.kind, asked(one)
    if scene.level == 1 and kind in ("colour", "shape", "size"):
        return scene.objects[0].value(kind)
    if kind == "position":
        return scene.objects[0].place
    named = [next((o for o in scene.objects if o.pair == p), None) for p in NAME.findall(text)]
    if kind == "existence":
        return "yes" if named[0] else "no"
    if kind == "relation":
        turned = text.startswith(("Seen from", "Compared with"))
        (ax, ay), (bx, by) = (o.centre for o in (named[::-1] if turned else named))
        if abs(ax - bx) > abs(ay - by):
            return "left" if ax < bx else "right"
        return "above" if ay < by else "below"
    if kind == "comparison":
        pick = max if "larger" in text else min
        return pick(named, key=lambda o: o.radius).name
    if kind == "count":
        value = counted(text)
        return str(sum(value in (o.colour, o.shape, o.size) for o in scene.objects))
    about = re.search("colour|shape|size", text)[0]
    (words,) = re.findall(rf"\b(?:{'|'.join((*COLOURS, *SHAPES, *SIZES))})\b", text)
    (match,) = [o for o in scene.objects if words in (o.colour, o.shape, o.size)]
    return match.value(about)


def counted(text: str) -> str:
    """The colour, shape or size that "red objects", "crosses" or "small objects" in a text mean."""
    plural = {name: name for name in (*COLOURS, *SIZES)}
    plural |= {f"{shape}es" if shape == "cross" else f"{shape}s": shape for shape in SHAPES}
    (value,) = [plural[word] for word in re.findall(r"\w+", text) if word in plural]
    return value


def described(form: str, objects: Sequence[playroom.Object]) -> str:
    """Objects from left to right in the form that a request shows: of one object, or of two."""
    several = re.split("(, a |; | then |, )(?=[aSC])", form) if form.count("SHAPE") > 1 else [form]
    joint = several[1].removesuffix("a ") if len(several) > 1 else ""
    return joint.join(
        several[0].replace("SIZE", o.size).replace("COLOUR", o.colour)
        .replace("SHAPE", o.shape).replace("PLACE", o.place)
        for o in sorted(objects, key=lambda o: o.centre[0])
    )  # fmt: skip
