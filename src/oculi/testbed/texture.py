"""What lies behind the objects of level 5: a faint pattern and grain.

All of it is integer arithmetic on raw Philox words, so that a picture is the same on every release
of numpy. A pattern is measured in units of the shorter side and so is the same at every
resolution; the grain is per pixel, and of equal strength.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from oculi.testbed.scene import Rgb, Scene, Texture
from oculi.testbed.vocabulary import Dice

ONE = 4096  # the shorter side
_CLOUD = 3  # a cloud's lattice is so many periods wide

Ints = np.ndarray  # int64


def _wave(phase: Ints, period: int) -> Ints:
    """Return 0 to 255 and back as `phase` goes through a period."""
    return np.abs(2 * (phase % period) - period) * 255 // period


def _stripes(x: Ints, y: Ints, texture: Texture, roll: Dice) -> Ints:
    """Soft stripes across the direction of the slope."""
    a, b = texture.slope
    return _wave(a * x + b * y + roll.below(ONE), 2 * texture.period)


def _checks(x: Ints, y: Ints, texture: Texture, roll: Dice) -> Ints:
    """A chess board."""
    columns = (x + roll.below(ONE)) // texture.period
    rows = (y + roll.below(ONE)) // texture.period
    return (columns + rows) % 2 * 255


def _dots(x: Ints, y: Ints, texture: Texture, roll: Dice) -> Ints:
    """Round dots in rows."""
    period = texture.period
    across, down = ((c + roll.below(ONE)) % period - period // 2 for c in (x, y))
    return (across**2 + down**2 < period**2 // 10) * 255


def _weave(x: Ints, y: Ints, texture: Texture, roll: Dice) -> Ints:
    """Soft stripes both ways."""
    across, down = (_wave(c + roll.below(ONE), 2 * texture.period) for c in (x, y))
    return (across + down) // 2


def _clouds(x: Ints, y: Ints, texture: Texture, roll: Dice) -> Ints:
    """Random levels on a lattice, and even slopes between them."""
    cell = _CLOUD * texture.period
    column, row = x // cell, y // cell
    right, below = x % cell, y % cell
    shape = int(row[-1, 0]) + 2, int(column[0, -1]) + 2
    lattice = roll.noise(shape[0] * shape[1]).reshape(shape).astype(np.int64)
    upper, lower = (
        lattice[row + n, column] * (cell - right) + lattice[row + n, column + 1] * right
        for n in (0, 1)
    )
    return (upper * (cell - below) + lower * below) // cell**2


_PATTERNS: dict[str, Callable[[Ints, Ints, Texture, Dice], Ints]] = {
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "weave": _weave,
    "clouds": _clouds,
}
PATTERNS = tuple(_PATTERNS)


def texture(background: Rgb, roll: Dice) -> Texture:
    """Return a texture for a light or dark background: as faint as words and objects can bear.

    Its second colour lies towards the middle of the greys that backgrounds have, dark or light, so
    that it is hardly nearer to an object's colour than a plain background may be.
    """
    change, bright = 14 + roll.below(15), sum(background) // 3
    if bright > (232 if bright > 128 else 38):
        change = -change
    red, green, blue = (min(255, max(0, c + change + roll.below(9) - 4)) for c in background)
    return Texture(
        roll.pick(PATTERNS),
        (red, green, blue),
        period=240 + roll.below(400),
        slope=roll.pick(((1, 0), (0, 1), (1, 1), (1, -1), (2, 1), (1, 2), (2, -1), (1, -2))),
        grain=4 + roll.below(7),
        seed=roll.below(2**63),
    )


def backcloth(scene: Scene) -> Image.Image:
    """Return the scene's picture with nothing on it yet: its background, plain or textured."""
    size = scene.width, scene.height
    if scene.texture is None:
        return Image.new("RGB", size, scene.background)
    chosen, unit, roll = scene.texture, 2 * min(size), Dice(scene.texture.seed)
    x = (2 * np.arange(size[0], dtype=np.int64)[None, :] + 1) * ONE // unit
    y = (2 * np.arange(size[1], dtype=np.int64)[:, None] + 1) * ONE // unit
    level = _PATTERNS[chosen.pattern](x, y, chosen, roll)[..., None]
    under, over = (np.array(rgb, np.int64) for rgb in (scene.background, chosen.rgb))
    shades = 2 * chosen.grain + 1
    grain = roll.noise(3 * size[0] * size[1]).reshape(size[1], size[0], 3).astype(np.int64)
    pixels = under + (over - under) * level // 255 + grain * shades // 256 - chosen.grain
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
