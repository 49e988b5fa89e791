"""Level 3: texts lie where they are said to, can be read off the picture, and give no answer away."""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np
import pytest
from checks import PLACE, Item, asked, assert_even, items, of_kind, overlap, replies, said, where
from PIL import Image

from oculi.testbed import glyphs, level3, playroom
from oculi.testbed.drawing import draw
from oculi.testbed.scene import Scene, Word
from oculi.testbed.vocabulary import PLACES

N = 1500
ALL = glyphs.LETTERS + glyphs.DIGITS
TEXT = re.compile(r"\b[A-Z]{3,6}\b|\b[1-9][0-9]{2,5}\b")


def world(split: str = "train") -> tuple[Item, ...]:
    return items(3, split, N)


def read(scene: Scene) -> list[Word]:
    """Words line by line, by where they are alone."""
    return sorted(scene.words, key=lambda word: (round(word.centre[1], 6), word.centre[0]))


def truth(one: Item) -> str:
    scene, kind, text = one.scene, one.question.kind, asked(one)
    size = scene.width, scene.height
    if kind == "word count":
        return str(len(scene.words))
    if kind == "read one":
        (place,) = PLACE.findall(text)
        (word,) = [word for word in scene.words if where(word.centre, size) == place]
        return word.string
    if kind == "word place":
        (string,) = TEXT.findall(text)
        (word,) = [word for word in scene.words if word.string == string]
        return where(word.centre, size)
    joint = re.search('"ONE(.*)TWO"', text)[1]
    return joint.join(word.string for word in read(scene))


@pytest.mark.parametrize("split", ["train", "test"])
def test_answers_are_true(split: str) -> None:
    for one in world(split):
        assert said(one) == truth(one), one.question.text
        assert [w.place for w in one.scene.words] == [w.place for w in read(one.scene)]


def test_answers_are_even() -> None:
    assert_even(replies(world(), "word place"), PLACES)
    assert_even(replies(world(), "word count"), ["1", "2", "3"])
    for kind in ("read all", "read one", "word place"):
        assert_even([str(len(one.scene.words)) for one in of_kind(world(), kind)], "123")
    alone = replies(world(), "read one")
    assert_even([str(len(text)) for text in alone], "3456")
    letters = "".join(text for text in alone if text.isalpha())
    assert_even(letters, glyphs.LETTERS)
    assert 0.15 < sum(text.isdigit() for text in alone) / len(alone) < 0.35
    places = [PLACE.findall(asked(one))[0] for one in of_kind(world(), "read one")]
    assert_even(places, PLACES)


def test_texts_are_words_or_numbers_and_different() -> None:
    for one in world():
        strings = [word.string for word in one.scene.words]
        assert len(set(strings)) == len(strings) in (1, 2, 3)
        assert all(TEXT.fullmatch(string) for string in strings)


@pytest.mark.parametrize("size", [(112, 112), (200, 60), (50, 170), (448, 448)])
def test_texts_lie_inside_apart_and_line_by_line(size: tuple[int, int]) -> None:
    unit = min(size)
    for index in range(300):
        words = playroom.scene(3, "train", index, size).words
        for word in words:
            assert 0.06 <= word.height / unit <= 0.12
            left, top, right, bottom = word.box
            assert left >= 0.01 * unit and top >= 0.01 * unit
            assert right <= size[0] - 0.01 * unit and bottom <= size[1] - 0.01 * unit
            assert where(word.centre, size) == word.place
        for a, b in combinations(words, 2):
            assert not overlap(a.box, b.box)
            lines = abs(a.centre[1] - b.centre[1]) - (a.height + b.height) / 2
            if a.centre[1] == b.centre[1]:
                assert a.place.split()[:-1] == b.place.split()[:-1]  # the same row of places
            else:
                assert lines >= 0.029 * unit


def templates(side: int) -> np.ndarray:
    """Each glyph as large as its box, white on black: (36, side, side)."""
    made = []
    for name in ALL:
        word = Word(name, "", (glyphs.WIDTH * 50, 50), 100, (255, 255, 255))
        scene = Scene(3, round(glyphs.WIDTH * 100), 100, (0, 0, 0), (), words=(word,))
        made.append(np.asarray(draw(scene).convert("L").resize((side, side))))
    return np.array(made) / 255


def recognised(image: Image.Image, word: Word, known: np.ndarray) -> str:
    """Read a word off the picture: the box of each glyph, and the template nearest to it."""
    side, text = known.shape[1], ""
    left, top, _, bottom = word.box
    for number in range(len(word.string)):
        x = left + number * (glyphs.WIDTH + glyphs.GAP) * word.height
        box = (x, top, x + glyphs.WIDTH * word.height, bottom)
        cut = image.resize((side, side), Image.Resampling.BILINEAR, box=box)
        pixels = np.asarray(cut.convert("L"), dtype=float)
        pixels = (pixels - pixels.mean()) / pixels.std()
        if sum(word.rgb) < 3 * 128:
            pixels = -pixels
        text += ALL[int((known * pixels).sum((1, 2)).argmax())]
    return text


@pytest.mark.parametrize(("level", "size"), [(3, 112), (3, 300), (5, 168)])
def test_what_is_written_can_be_read_off_the_picture(level: int, size: int) -> None:
    known = templates(12)
    known = (known - known.mean((1, 2), keepdims=True)) / known.std((1, 2), keepdims=True)
    right = total = 0
    for index in range(40):
        scene = playroom.scene(level, "test", index, (size, size))
        image = draw(scene)
        for word in scene.words:
            read = recognised(image, word, known)
            right += sum(a == b for a, b in zip(read, word.string, strict=True))
            total += len(read)
    assert right / total > (0.999 if size > 200 else 0.98), right / total


def differences(options: tuple[str, ...]) -> list[list[int]]:
    """In how many signs each option differs from all, where they are as long; 9 where they are not."""
    return [
        sorted(
            sum(a != b for a, b in zip(one, other, strict=True)) if len(one) == len(other) else 9
            for other in options
        )
        for one in options
    ]


def test_wrong_readings_tell_nothing() -> None:
    """Options are crossed readings of one text, or texts that have nothing to do with another."""
    crossed = swapped = different = alike = 0
    for one in of_kind(world(), "read all", "read one"):
        options = one.question.options
        if not options:
            continue
        assert len(options) == 4
        apart = differences(options)
        signs = [sorted(map(len, re.split(r"\W+|then", option))) for option in options]
        if all(row == [0, 1, 1, 2] for row in apart):
            crossed += 1
        elif one.question.kind == "read one":
            different += 1
            alike += any(row[1] <= 1 for row in apart)  # two short numbers may be, by chance
        else:  # two texts swapped, in two of four; each option has one that differs by a sign
            swapped += 1
            assert all(row[0] == 0 and row[1] == 1 and row[2] > 1 for row in apart), options
            assert all(row == signs[0] for row in signs)
    assert min(crossed, swapped, different) > 20 and alike < 0.1 * different


def test_nothing_tells_of_hidden_words() -> None:
    """Only what the question is about stands in it."""
    for one in world():
        named = set(TEXT.findall(asked(one))) - {"ONE", "TWO"}
        assert named <= {w.string for w in one.scene.words}
        assert len(named) == (one.question.kind == "word place")
    assert playroom.kinds(3) == level3.KINDS
