"""How a chart is laid out: axes, grid, bars or a line, and the texts beside them.

The axis goes from nought to ten steps, has a faint grid line at every step and a number at every
second or fifth: each value lies on a grid line and can be read off exactly. At level 4's own size
a step is about eight pixels high.
"""

from __future__ import annotations

from dataclasses import dataclass

from oculi.testbed import glyphs
from oculi.testbed.scene import Chart, Mark, Rgb, Word, ink, paint
from oculi.testbed.vocabulary import COLOURS, Dice

STEPS = 10
GLYPH = 0.066  # height of labels and numbers, in units of the shorter side
_SPACE = 0.03  # between the axes and what is written beside them
_EDGE = 0.025  # least distance from the picture's edge
_THIN, _AXIS, _LINE, _DOT = 0.008, 0.012, 0.02, 0.05  # widths of lines
_FAINT = 0.24  # how far a grid line goes from the background to the ink
_CONTRAST = 70  # least difference in brightness of a line and the background


@dataclass(frozen=True, slots=True)
class _Field:
    """Where the bars or the line are: edges in units of the shorter side, a number per axis step."""

    left: float
    top: float
    right: float
    bottom: float
    unit: int  # pixels

    def x(self, slot: float, slots: int) -> float:
        """Return how far right a slot, or a part of one, lies."""
        return self.left + (self.right - self.left) * slot / slots

    def y(self, steps: float) -> float:
        """Return how far down so many steps of the axis lie."""
        return self.bottom - (self.bottom - self.top) * steps / STEPS

    def mark(self, points: list[tuple[float, float]], rgb: Rgb, width: float = 0.0) -> Mark:
        """Return a mark in pixels."""
        scaled = tuple((x * self.unit, y * self.unit) for x, y in points)
        return Mark(scaled, rgb, width * self.unit)

    def word(self, string: str, x: float, y: float, rgb: Rgb) -> Word:
        """Return a text in pixels, its middle at (x, y)."""
        return Word(string, "", (x * self.unit, y * self.unit), GLYPH * self.unit, rgb)


def _field(chart: Chart, size: tuple[int, int], roll: Dice) -> _Field:
    """Return the room that the numbers at the left and the labels below leave, with some margin."""
    unit = min(size)
    numbers = glyphs.width(str(STEPS * chart.step), GLYPH)
    left, right = (_EDGE + roll.between(0, 0.02) for _ in range(2))  # six labels need the width
    top, bottom = (_EDGE + roll.between(0, 0.08) for _ in range(2))
    return _Field(
        left + numbers + _SPACE,
        top + GLYPH / 2,
        size[0] / unit - right,
        size[1] / unit - bottom - GLYPH - _SPACE,
        unit,
    )


def _brightness(rgb: Rgb) -> float:
    """Return how bright a colour looks, 0 to 255."""
    red, green, blue = rgb
    return 0.3 * red + 0.6 * green + 0.1 * blue


def _colour(background: Rgb, roll: Dice) -> str:
    """Return a colour whose lines are seen well on this background."""
    base = _brightness(background)
    seen = [c for c, rgb in COLOURS.items() if abs(_brightness(rgb) - base) > _CONTRAST]
    return roll.pick(seen)


def _axes(field: _Field, background: Rgb, pen: Rgb) -> list[Mark]:
    """Return the grid's lines and, last, the axes."""
    red, green, blue = (
        round(under + (over - under) * _FAINT) for under, over in zip(background, pen, strict=True)
    )
    marks = [
        field.mark([(field.left, y), (field.right, y)], (red, green, blue), _THIN)
        for y in map(field.y, range(1, STEPS + 1))
    ]
    corner = field.left, field.bottom
    ends = [(field.left, field.top), corner, (field.right, field.bottom)]
    return [*marks, field.mark(ends, pen, _AXIS)]


def _bars(chart: Chart, field: _Field, background: Rgb, roll: Dice) -> list[Mark]:
    """Return one bar per value, all of one colour or each of its own."""
    n, half = len(chart.values), roll.between(0.25, 0.38)
    colours = [_colour(background, roll)] * n
    if roll.coin():
        colours = [_colour(background, roll) for _ in colours]
    marks = []
    for slot, (value, colour) in enumerate(zip(chart.values, colours, strict=True)):
        left, right = (field.x(slot + 0.5 + side, n) for side in (-half, half))
        top = field.y(value / chart.step)
        corners = [(left, top), (right, top), (right, field.bottom), (left, field.bottom)]
        marks.append(field.mark(corners, paint(colour, roll)))
    return marks


def _line(chart: Chart, field: _Field, background: Rgb, roll: Dice) -> list[Mark]:
    """Return a line through the values with a dot at each."""
    n, rgb = len(chart.values), paint(_colour(background, roll), roll)
    points = [
        (field.x(slot + 0.5, n), field.y(value / chart.step))
        for slot, value in enumerate(chart.values)
    ]
    return [field.mark(points, rgb, _LINE), *(field.mark([p], rgb, _DOT) for p in points)]


def _texts(chart: Chart, field: _Field, pen: Rgb, roll: Dice) -> list[Word]:
    """Return the axis's numbers, right-aligned, and the labels under their values."""
    end, n = field.left - _SPACE, len(chart.labels)
    words = []
    for steps in range(0, STEPS + 1, roll.pick((2, 5))):
        number = str(steps * chart.step)
        middle = end - glyphs.width(number, GLYPH) / 2
        words.append(field.word(number, middle, field.y(steps), pen))
    below = field.bottom + _SPACE + GLYPH / 2
    for slot, label in enumerate(chart.labels):
        words.append(field.word(label, field.x(slot + 0.5, n), below, pen))
    return words


def lay_out(
    chart: Chart, size: tuple[int, int], background: Rgb, roll: Dice
) -> tuple[tuple[Mark, ...], tuple[Word, ...]]:
    """Return a chart's marks, in the order in which they are drawn, and its texts."""
    field, pen = _field(chart, size, roll), ink(background, roll)
    drawn = {"bar": _bars, "line": _line}[chart.form](chart, field, background, roll)
    axes = _axes(field, background, pen)
    return (*axes[:-1], *drawn, axes[-1]), tuple(_texts(chart, field, pen, roll))
