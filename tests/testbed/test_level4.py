"""Level 4: charts show their values, answers follow from them, and numbers give nothing away."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest
from checks import Item, asked, assert_even, items, of_kind, overlap, replies, said

from oculi.testbed import playroom
from oculi.testbed.drawing import draw
from oculi.testbed.questions import LETTERS
from oculi.testbed.scene import Chart, Scene

N = 1500


def world(split: str = "train") -> tuple[Item, ...]:
    return items(4, split, N)


def chart(scene: Scene) -> Chart:
    assert scene.chart is not None
    return scene.chart


def truth(one: Item) -> str:
    """Work the answer out from the question's words and the labels with their values."""
    values = dict(zip(chart(one.scene).labels, chart(one.scene).values, strict=True))
    text, kind = asked(one), one.question.kind
    named = [word for word in re.findall(r"\b[A-Z]+\b", text) if word in values]
    if kind == "value":
        (label,) = named
        return str(values[label])
    if kind == "difference":
        a, b = named
        return str(abs(values[a] - values[b]))
    among = list(values) if kind == "extreme" else named
    assert len(named) == (0 if kind == "extreme" else 2)
    pick = max if "larg" in text else min
    assert ("small" in text) == (pick is min)
    return pick(among, key=lambda label: values[label])


@pytest.mark.parametrize("split", ["train", "test"])
def test_answers_are_true(split: str) -> None:
    for one in world(split):
        assert said(one) == truth(one), one.question.text


def test_answers_are_even() -> None:
    values = [str(k * step) for step in (1, 10) for k in range(1, 10)]
    assert_even(replies(world(), "value"), values)
    assert_even(replies(world(), "difference"), [v for v in values if v not in ("9", "90")])
    first, spots = [], []
    for one in of_kind(world(), "comparison"):
        named = re.findall(r"\b[A-Z]+\b", asked(one))
        first.append(str([n for n in named if n in chart(one.scene).labels].index(said(one))))
    assert_even(first, "01")
    for one in of_kind(world(), "extreme"):
        labels = chart(one.scene).labels
        spots += [str(labels.index(said(one)))] * (len(labels) == 6)
    assert_even(spots, "012345")


def test_charts_have_different_labels_and_different_values() -> None:
    forms, counts = Counter(), []
    for one in world():
        found = chart(one.scene)
        forms[found.form] += 1
        counts.append(str(len(found.labels)))
        assert len(set(found.labels)) == len(set(found.values)) == len(found.labels)
        assert all(re.fullmatch("[A-Z]{1,3}", label) for label in found.labels)
        assert not set(found.labels) & set(LETTERS)
        assert found.step in (1, 10)
        assert {value % found.step for value in found.values} == {0}
        assert all(1 <= value // found.step <= 9 for value in found.values)
    assert_even(counts, "3456")
    assert forms.keys() == {"bar", "line"} and min(forms.values()) > 0.45 * N


def test_options_are_numbers_of_one_axis() -> None:
    for one in of_kind(world(), "value", "difference"):
        options = one.question.options
        assert len({len(option) for option in options}) <= 1, options


def read_off(scene: Scene) -> list[float]:
    """The values as one measures them in the picture: with the colours, over each label."""
    found, pixels = chart(scene), np.asarray(draw(scene)).astype(int)
    numbers = {word.string: word.centre[1] for word in scene.words if word.string.isdigit()}
    top = str(10 * found.step)
    pitch = (numbers["0"] - numbers[top]) / (10 * found.step)
    labels = {word.string: word.centre[0] for word in scene.words if word.string.isalpha()}
    # The last mark but the axes is a bar, or a dot of the line; bars and dots go from left to right.
    shown = scene.marks[-1 - len(found.labels) : -1]
    values = []
    for label, mark in zip(found.labels, shown, strict=True):
        column = pixels[:, int(labels[label])]
        like = np.flatnonzero(np.abs(column - mark.rgb).max(-1) < 60) + 0.5
        like = like[like < numbers["0"] - 0.02 * scene.height]  # the axis fades through greys
        height = like.mean() if found.form == "line" else like.min() - 0.5
        values.append((numbers["0"] - height) / pitch)
    return values


@pytest.mark.parametrize("size", [(112, 112), (320, 180)])
def test_values_can_be_read_off_the_picture(size: tuple[int, int]) -> None:
    for index in range(120):
        scene = playroom.scene(4, "test", index, size)
        found = chart(scene)
        steps = np.divide(read_off(scene), found.step)
        assert np.abs(steps - np.divide(found.values, found.step)).max() < 0.3, index


def test_a_step_is_large_enough_to_see() -> None:
    for index in range(100):
        scene = playroom.scene(4, "train", index)
        grid = sorted({mark.points[0][1] for mark in scene.marks[:10]})
        assert len(grid) == 10 and min(np.diff(grid)) >= 7


@pytest.mark.parametrize("size", [(112, 112), (200, 60), (50, 170), (448, 448)])
def test_everything_lies_inside_and_no_text_on_another(size: tuple[int, int]) -> None:
    for index in range(150):
        scene = playroom.scene(4, "train", index, size)
        points = [point for mark in scene.marks for point in mark.points]
        boxes = [word.box for word in scene.words]
        points += [corner for box in boxes for corner in (box[:2], box[2:])]
        assert np.min(points) >= 0
        assert all((np.max(points, axis=0) - size) <= 0)
        assert not any(overlap(a, b) for a, b in combinations(boxes, 2))
        assert [w.string for w in scene.words if w.string.isalpha()] == list(chart(scene).labels)
        spaces = [
            b[0] - a[2] for a, b in pairwise(boxes) if a[1] == b[1]
        ]  # between labels: wider than between two letters
        assert min(spaces) > 1.8 * 0.17 * scene.words[0].height
