"""Draws a Playroom scene: each part as an anti-aliased mask, pasted where it lies.

A mask is drawn several times too large and reduced, for its own box only: the cost follows the
parts' area and not the picture's, and edges fall between pixels as they should. Nothing here knows
of levels: a scene is drawn by what it holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from PIL import Image, ImageDraw

from oculi.testbed import glyphs
from oculi.testbed.scene import Box, Mark, Object, Rgb, Scene, Word
from oculi.testbed.texture import backcloth

_OVER = 4  # supersampling along each axis
_OVER_FINE = 8  # of lines and letters, whose strokes may be a pixel thick
_THICK = 0.36  # half the thickness of a cross's arms
_HOLE = 0.55  # radius of a ring's hole

Point = tuple[float, float]


def _star() -> list[Point]:
    """Return a five-pointed star that spans the unit square from side to side, centred in it."""
    outer = 1 / math.sin(math.radians(72))
    lift = (outer - outer * math.cos(math.radians(36))) / 2
    points = []
    for corner in range(10):
        reach = outer if corner % 2 == 0 else 0.42 * outer
        angle = math.radians(36 * corner)
        points.append((reach * math.sin(angle), lift - reach * math.cos(angle)))
    return points


_POLYGONS: dict[str, list[Point]] = {
    "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    "triangle": [(0, -0.87), (1, 0.87), (-1, 0.87)],
    "star": _star(),
    "cross": [
        (-_THICK, -1), (_THICK, -1), (_THICK, -_THICK), (1, -_THICK), (1, _THICK),
        (_THICK, _THICK), (_THICK, 1), (-_THICK, 1), (-_THICK, _THICK), (-1, _THICK),
        (-1, -_THICK), (-_THICK, -_THICK),
    ],
}  # fmt: skip


class _Mask:
    """A large mask for the pixels around one box; points are given in the picture's pixels."""

    def __init__(self, corner: tuple[int, int], width: int, height: int, over: int) -> None:
        self.corner, self.over = corner, over
        self.big = Image.new("L", (width * over, height * over))
        self.pen = ImageDraw.Draw(self.big)

    @classmethod
    def around(cls, box: Box) -> _Mask:
        """Return an empty mask that covers `box` with a pixel to spare."""
        left, top = math.floor(box[0]), math.floor(box[1])
        width, height = math.ceil(box[2]) - left + 1, math.ceil(box[3]) - top + 1
        return cls((left, top), width, height, _OVER_FINE)

    def at(self, point: Point) -> Point:
        """Return a point of the picture as one of the large mask.

        Pillow's coordinates name pixel centres: half a (large) pixel off the edges we compute with.
        """
        (x, y), (left, top) = point, self.corner
        return (x - left) * self.over - 0.5, (y - top) * self.over - 0.5

    def disc(self, point: Point, radius: float, fill: int = 255) -> None:
        """Fill a circle."""
        (x, y), r = self.at(point), radius * self.over
        self.pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)

    def area(self, points: Sequence[Point]) -> None:
        """Fill a polygon."""
        self.pen.polygon([self.at(point) for point in points], fill=255)

    def line(self, points: Sequence[Point], width: float) -> None:
        """Draw a line through `points` with round joints and ends; a single point is a disc."""
        half = width / 2
        for (ax, ay), (bx, by) in pairwise(points):
            length = math.hypot(bx - ax, by - ay)
            x, y = half * (ay - by) / length, half * (bx - ax) / length
            self.area([(ax + x, ay + y), (bx + x, by + y), (bx - x, by - y), (ax - x, ay - y)])
        for point in points:
            self.disc(point, half)

    def paste(self, image: Image.Image, rgb: Rgb) -> None:
        """Paint `image` in this colour where the mask is."""
        small = self.big.reduce(self.over)
        left, top = self.corner
        image.paste(rgb, (left, top, left + small.width, top + small.height), small)


def _object(item: Object) -> _Mask:
    left, top = (math.floor(c - item.radius) for c in item.centre)
    side = math.ceil(2 * item.radius) + 2
    mask = _Mask((left, top), side, side, _OVER)
    x, y = mask.at(item.centre)
    r = item.radius * _OVER
    if item.shape in _POLYGONS:
        mask.pen.polygon([(x + r * u, y + r * v) for u, v in _POLYGONS[item.shape]], fill=255)
    else:
        mask.disc(item.centre, item.radius)
        if item.shape == "ring":
            mask.disc(item.centre, _HOLE * item.radius, fill=0)
    return mask


def _mark(mark: Mark) -> _Mask:
    half = mark.width / 2
    across, down = ([point[axis] for point in mark.points] for axis in (0, 1))
    box = min(across) - half, min(down) - half, max(across) + half, max(down) + half
    mask = _Mask.around(box)
    if mark.width:
        mask.line(mark.points, mark.width)
    else:
        mask.area(mark.points)
    return mask


def _word(word: Word) -> _Mask:
    mask = _Mask.around(word.box)
    for stroke in glyphs.strokes(word.string, word.box[0], word.box[1], word.height):
        mask.line(stroke, glyphs.THICK * word.height)
    return mask


def draw(scene: Scene) -> Image.Image:
    """Return the scene as an RGB picture (uint8, scene.width x scene.height)."""
    image = backcloth(scene)
    for item in scene.objects:
        _object(item).paste(image, item.rgb)
    for mark in scene.marks:
        _mark(mark).paste(image, mark.rgb)
    for word in scene.words:
        _word(word).paste(image, word.rgb)
    return image
