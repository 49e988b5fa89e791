"""Draws a Playroom scene: each object as an anti-aliased mask, pasted where it lies.

A mask is drawn four times too large and reduced, for its own square only: the cost follows the
objects' area and not the picture's, and edges fall between pixels as they should.
"""

from __future__ import annotations

import math

from PIL import Image, ImageDraw

from oculi.testbed.scene import Object, Scene

_OVER = 4  # supersampling along each axis
_THICK = 0.36  # half the thickness of a cross's arms
_HOLE = 0.55  # radius of a ring's hole


def _star() -> list[tuple[float, float]]:
    """Return a five-pointed star that spans the unit square from side to side, centred in it."""
    outer = 1 / math.sin(math.radians(72))
    lift = (outer - outer * math.cos(math.radians(36))) / 2
    points = []
    for corner in range(10):
        reach = outer if corner % 2 == 0 else 0.42 * outer
        angle = math.radians(36 * corner)
        points.append((reach * math.sin(angle), lift - reach * math.cos(angle)))
    return points


_POLYGONS: dict[str, list[tuple[float, float]]] = {
    "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    "triangle": [(0, -0.87), (1, 0.87), (-1, 0.87)],
    "star": _star(),
    "cross": [
        (-_THICK, -1), (_THICK, -1), (_THICK, -_THICK), (1, -_THICK), (1, _THICK),
        (_THICK, _THICK), (_THICK, 1), (-_THICK, 1), (-_THICK, _THICK), (-1, _THICK),
        (-1, -_THICK), (-_THICK, -_THICK),
    ],
}  # fmt: skip


def _mask(item: Object) -> tuple[Image.Image, tuple[int, int]]:
    """Return the object's coverage as an 8-bit mask and the pixel of its top left corner."""
    left, top = (math.floor(c - item.radius) for c in item.centre)
    side = math.ceil(2 * item.radius) + 2
    big = Image.new("L", (side * _OVER, side * _OVER))
    pen = ImageDraw.Draw(big)
    # Pillow's coordinates name pixel centres: half a (large) pixel off the edges we compute with.
    x, y = ((c - o) * _OVER - 0.5 for c, o in zip(item.centre, (left, top), strict=True))
    r = item.radius * _OVER
    if item.shape in _POLYGONS:
        pen.polygon([(x + r * u, y + r * v) for u, v in _POLYGONS[item.shape]], fill=255)
    else:
        pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
        if item.shape == "ring":
            hole = _HOLE * r
            pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
    return big.reduce(_OVER), (left, top)


def draw(scene: Scene) -> Image.Image:
    """Return the scene as an RGB picture (uint8, scene.width x scene.height)."""
    image = Image.new("RGB", (scene.width, scene.height), scene.background)
    for item in scene.objects:
        mask, corner = _mask(item)
        image.paste(item.rgb, (*corner, corner[0] + mask.width, corner[1] + mask.height), mask)
    return image
