"""Playroom's letters: each is drawn where it should be and looks like no other."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from oculi.errors import DataError
from oculi.testbed import glyphs
from oculi.testbed.drawing import draw
from oculi.testbed.scene import Scene, Word

ALL = glyphs.LETTERS + glyphs.DIGITS
ROOM = 12  # pixels around a glyph of 7


def drawn(text: str, height: float, left: float, top: float, room: int = ROOM) -> np.ndarray:
    """White on black: (room, room), 0 to 1."""
    centre = left + glyphs.width(text, height) / 2, top + height / 2
    word = Word(text, "", centre, height, (255, 255, 255))
    scene = Scene(3, room, room, (0, 0, 0), (), words=(word,))
    return np.asarray(draw(scene))[..., 0] / 255


def test_seven_pixels_are_enough_to_tell_glyphs_apart() -> None:
    """Wherever between the pixels a glyph lies, it is nearest to itself and far from the others.

    Each is compared with all on a grid of quarter pixels, as close as a matched filter could be. A
    distance of 1 is one pixel between black and white.
    """
    offsets = [(x, y) for x in (2, 2.25, 2.5, 2.75) for y in (2, 2.25, 2.5, 2.75)]
    known = np.array([[drawn(name, 7, *at).ravel() for at in offsets] for name in ALL])
    for one, other in combinations(range(len(ALL)), 2):
        apart = ((known[one][:, None] - known[other][None]) ** 2).sum(-1).min()
        assert apart > 0.8, ALL[one] + ALL[other]
    for name in ALL:
        for at in ((2.13, 2.62), (2.4, 2.1), (2.9, 2.87)):
            apart = ((known - drawn(name, 7, *at).ravel()) ** 2).sum(-1).min(1)
            first, second = np.argsort(apart)[:2]
            assert ALL[first] == name, (name, ALL[first])
            assert apart[second] > 1.5 * apart[first], (name, ALL[second])


def test_glyphs_fill_their_box_and_no_more() -> None:
    for name in ALL:
        height = 96.0
        ink = drawn(name, height, 8, 8, 112) > 0.5
        rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
        assert abs(rows[0] - 8) <= 1 and abs(rows[-1] + 1 - 8 - height) <= 1, name
        assert columns[0] >= 7 and columns[-1] + 1 <= 9 + glyphs.width(name, height), name
        assert columns[-1] - columns[0] > 0.5 * height, name


def test_a_word_is_its_glyphs_side_by_side() -> None:
    word = drawn("AB7", 100, 4, 4, 240)
    step = round(100 * (glyphs.WIDTH + glyphs.GAP))
    parts = [drawn(name, 100, 4 + n * step, 4, 240) for n, name in enumerate("AB7")]
    assert np.abs(word - np.sum(parts, axis=0)).mean() < 1e-3


def test_other_characters_are_refused() -> None:
    for text in ("a", "A B", "Ä", "-"):
        with pytest.raises(DataError, match="there are A to Z and 0 to 9"):
            glyphs.strokes(text, 0, 0, 7)
