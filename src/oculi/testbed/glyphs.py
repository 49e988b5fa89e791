"""Playroom's own letters: capitals and digits as strokes, the same on every machine for ever.

A font file, or Pillow's font, is drawn by FreeType, whose pictures change between releases; these
are a few lines and discs each. All have one width. Pairs that are easily mixed up are kept apart:
the nought has a slash, the one a flag and a long foot, the eight a narrow head, the I two bars.
"""

from __future__ import annotations

from oculi.errors import DataError

Point = tuple[float, float]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DIGITS = "0123456789"

# In parts of a glyph's height, which, like its width, includes the strokes' thickness.
WIDTH = 0.62
GAP = 0.17  # between two glyphs
THICK = 0.14

# Each stroke is a row of points "xy" on a grid of 4 x 6 steps, x to the right and y downwards.
_COLUMNS, _ROWS = 4, 6
_STROKES = {
    "A": "06 20 46/14 34",
    "B": "00 30 41 42 33 44 45 36 06 00/03 33",
    "C": "41 30 10 01 05 16 36 45",
    "D": "00 20 42 44 26 06 00",
    "E": "40 00 06 46/03 33",
    "F": "40 00 06/03 33",
    "G": "41 30 10 01 05 16 36 46 43 23",
    "H": "00 06/40 46/03 43",
    "I": "20 26/00 40/06 46",
    "J": "20 40 45 36 16 05 04",
    "K": "00 06/40 03 46",
    "L": "00 06 46",
    "M": "06 00 23 40 46",
    "N": "06 00 46 40",
    "O": "10 30 41 45 36 16 05 01 10",
    "P": "06 00 30 41 42 33 03",
    "Q": "10 30 41 45 36 16 05 01 10/24 46",
    "R": "06 00 30 41 42 33 03/23 46",
    "S": "41 30 10 01 02 13 33 44 45 36 16 05",
    "T": "00 40/20 26",
    "U": "00 05 16 36 45 40",
    "V": "00 26 40",
    "W": "00 16 22 36 40",
    "X": "00 46/40 06",
    "Y": "00 23 40/23 26",
    "Z": "00 40 06 46",
    "0": "10 30 41 45 36 16 05 01 10/14 32",
    "1": "02 20 26/06 46",
    "2": "01 10 30 41 42 06 46",
    "3": "00 40 22 32 43 45 36 16 05",
    "4": "36 30 04 44",
    "5": "40 00 02 32 43 45 36 16 05",
    "6": "30 11 03 05 16 36 45 44 33 13 04",
    "7": "00 40 16",
    "8": "10 30 32 04 05 16 36 45 44 12 10",
    "9": "42 33 13 02 01 10 30 41 43 35 16",
}
_GLYPHS: dict[str, list[list[Point]]] = {
    name: [
        [(int(point[0]) / _COLUMNS, int(point[1]) / _ROWS) for point in stroke.split()]
        for stroke in strokes.split("/")
    ]
    for name, strokes in _STROKES.items()
}


def width(text: str, height: float) -> float:
    """Return the width of `text` in glyphs of this height, in the height's unit."""
    return height * (len(text) * (WIDTH + GAP) - GAP)


def strokes(text: str, left: float, top: float, height: float) -> list[list[Point]]:
    """Return the middle lines of `text`'s strokes, to be drawn `THICK * height` thick, round ends.

    The text then fills the box from (left, top) of `width` x `height`. Raises DataError for a
    character other than a capital letter or a digit.
    """
    inset = THICK * height / 2
    across, down = WIDTH * height - 2 * inset, height - 2 * inset
    lines = []
    for number, name in enumerate(text):
        if name not in _GLYPHS:
            raise DataError(f'playroom: no glyph for "{name}"; there are A to Z and 0 to 9')
        x, y = left + inset + number * (WIDTH + GAP) * height, top + inset
        lines += [[(x + across * u, y + down * v) for u, v in line] for line in _GLYPHS[name]]
    return lines
