"""Level 5: small objects and words lie apart on a ground that hides neither."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
from checks import (
    HELD_OUT,
    NAME,
    Item,
    asked,
    assert_even,
    counted,
    described,
    items,
    of_kind,
    overlap,
    replies,
    said,
    truth_about_objects,
    where,
)
from test_level3 import read
from test_level3 import truth as truth_about_words

from oculi.testbed import level2, level3, level5, playroom
from oculi.testbed.drawing import draw
from oculi.testbed.texture import PATTERNS
from oculi.testbed.vocabulary import COLOURS, PAIRS, PLACES, SHAPES, SIZES

N = 1500


def world(split: str = "train") -> tuple[Item, ...]:
    return items(5, split, N)


def listed(one: Item) -> list[playroom.Object]:
    """The objects that a request for a description means."""
    value = counted(asked(one).split('"')[0])
    return [o for o in one.scene.objects if value in (o.colour, o.shape, o.size)]


def truth(one: Item) -> str:
    if one.question.kind in level3.KINDS:
        return truth_about_words(one)
    if one.question.kind == "description":
        return described(asked(one).split('"')[1], listed(one))
    return truth_about_objects(one)


@pytest.mark.parametrize("split", ["train", "pairs"])
def test_answers_are_true(split: str) -> None:
    for one in world(split):
        assert said(one) == truth(one), one.question.text


def test_answers_are_even() -> None:
    for values in (tuple(COLOURS), SHAPES, SIZES):
        assert_even([a for a in replies(world(), "attribute") if a in values], values)
    assert_even(replies(world(), "count"), "01234")
    assert_even(replies(world(), "relation"), ["left", "right", "above", "below"])
    assert_even(replies(world(), "existence"), ["yes", "no"])
    assert_even(replies(world("pairs"), "existence"), ["yes", "no"])
    assert_even(replies(world(), "word place"), PLACES)
    assert_even(replies(world(), "word count"), "123")
    assert_even([str(len(listed(one))) for one in of_kind(world(), "description")], "234")


def test_names_in_a_question_are_of_one_object() -> None:
    for one in of_kind(world(), "relation", "comparison"):
        for pair in NAME.findall(asked(one)):
            assert sum(item.pair == pair for item in one.scene.objects) == 1


def test_existence_asks_alike_for_what_is_and_is_not_there() -> None:
    """The pairs asked for are the same for yes and no; with no, something has one attribute."""
    for split, pairs in (("train", set(PAIRS) - HELD_OUT), ("pairs", HELD_OUT)):
        named = {"yes": Counter(), "no": Counter()}
        for one in of_kind(world(split), "existence"):
            ((colour, shape),) = NAME.findall(asked(one))
            named[said(one)][colour, shape] += 1
            half = [(o.colour == colour) != (o.shape == shape) for o in one.scene.objects]
            assert any(half)
        both = named["yes"] + named["no"]
        assert set(both) <= pairs and len(both) > 0.9 * len(pairs)
        if split == "pairs":
            assert set(named["yes"]) == set(named["no"]) == HELD_OUT


def test_pairs_asks_about_held_out_pairs() -> None:
    assert playroom.kinds(5, "pairs") == level2.KINDS == playroom.kinds(2)
    assert playroom.kinds(5) == (*level2.KINDS, *level3.KINDS)
    for one in of_kind(world("pairs"), "description"):
        assert HELD_OUT & {item.pair for item in listed(one)}
    for one in of_kind(world("pairs"), "attribute"):
        text = asked(one)
        words = re.findall(rf"\b(?:{'|'.join((*COLOURS, *SHAPES, *SIZES))})\b", text)
        (item,) = [o for o in one.scene.objects if words[-1] in (o.colour, o.shape, o.size)]
        assert item.pair in HELD_OUT


@pytest.mark.parametrize("size", [(168, 168), (240, 90), (90, 240), (448, 448)])
def test_everything_lies_inside_its_size_and_apart(size: tuple[int, int]) -> None:
    unit = min(size)
    for index in range(200):
        scene = playroom.scene(5, "train", index, size)
        assert 5 <= len(scene.objects) <= 12 and 1 <= len(scene.words) <= 3
        for item in scene.objects:
            low, high = level5.BANDS[item.size]
            assert 0.04 <= low <= 2 * item.radius / unit <= high <= 0.10
            assert where(item.centre, size) == item.place
        for word in scene.words:
            assert 0.06 <= word.height / unit <= 0.08
            assert where(word.centre, size) == word.place
        assert list(scene.words) == read(scene)
        boxes = [part.box for part in (*scene.objects, *scene.words)]
        for box in boxes:
            assert min(box) >= -1e-6
            assert box[2] <= size[0] + 1e-6 and box[3] <= size[1] + 1e-6
        assert not any(overlap(a, b) for a, b in combinations(boxes, 2))


def test_listed_objects_have_one_order_from_left_to_right() -> None:
    for one in of_kind(world(), "description"):
        across = sorted(item.centre[0] for item in listed(one))
        assert min(np.diff(across)) >= 0.04 * 168 - 1e-6


def test_sizes_are_clearly_apart() -> None:
    bands = [level5.BANDS[size] for size in SIZES]
    for (_, high), (low, _) in pairwise(bands):
        assert 168 * (low - high) > 2  # pixels


def test_the_ground_hides_nothing() -> None:
    """Objects and words differ clearly from all that lies behind them, which is noisy itself."""
    patterns = Counter()
    for index in range(150):
        scene = playroom.scene(5, "train", index)
        ground = np.asarray(draw(replace(scene, objects=(), words=()))).astype(int)
        patterns[scene.texture.pattern] += 1
        assert 1.5 < ground.std((0, 1)).mean() < 20
        for item in scene.objects:
            left, top, right, bottom = (round(edge) for edge in item.box)
            behind = ground[top:bottom, left:right].reshape(-1, 3)
            assert np.linalg.norm(behind - item.rgb, axis=1).min() > 60, (index, item)
        for word in scene.words:
            left, top, right, bottom = (round(edge) for edge in word.box)
            behind = ground[top:bottom, left:right].mean(-1)
            assert np.abs(behind - np.mean(word.rgb)).min() > 75, (index, word)
    assert set(patterns) == set(PATTERNS)


def test_the_ground_is_different_each_time_and_the_same_again() -> None:
    grounds = set()
    for index in range(20):
        scene = replace(playroom.scene(5, "train", index, (64, 48)), objects=(), words=())
        assert draw(scene).tobytes() == draw(scene).tobytes()
        plain = replace(scene, texture=None)
        assert draw(plain).getcolors() == [(64 * 48, scene.background)]
        grounds.add(draw(replace(scene, background=(30, 30, 30))).tobytes())
    assert len(grounds) == 20


def test_wrong_lists_are_crossed() -> None:
    """Each option differs from two others by one attribute, from the third by two."""
    for one in of_kind(world(), "description"):
        options = [re.findall(r"\w+", option) for option in one.question.options]
        for words in options:
            apart = sorted(sum(a != b for a, b in zip(words, o, strict=True)) for o in options)
            assert apart == [0, 1, 1, 2], one.question.options
        names = [pair for option in one.question.options for pair in NAME.findall(option)]
        assert not HELD_OUT & set(names)
