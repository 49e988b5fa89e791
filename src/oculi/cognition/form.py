"""How values are written in an answer, how they are read back, and what they score.

Numbers of one width, cells apart by a comma, in reading order:

    163 178 193,012 004 255,...     spaced: three channels, 256 levels
    6 7 7,0 0 9,...                 the same with ten levels
    163178193,012004255,...         joined
    #a3b2c1,#0c04ff,...             hex
    051,007,203,044                 indices of a codebook of 256

One width, because an answer then costs the same whatever the picture shows: a sample's length is known
before its picture is decoded. LLMs' tokenizers give each digit a token (Qwen2.5, the testbed's) or three
digits together (Llama 3). No token is added to a vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
_MAX = 100_000  # characters of an answer that are looked at: 64 x 64 colours take 50,000


@dataclass(frozen=True)
class Style:
    """How a cell is written: base of its numbers, what stands before them, what between."""

    base: int
    before: str
    between: str


STYLES: Final = {
    "spaced": Style(10, "", " "),
    "joined": Style(10, "", ""),
    "hex": Style(16, "#", ""),
}
_DIGITS: Final = {10: ("d", "[0-9]{1,6}"), 16: ("x", "[0-9a-fA-F]{1,6}")}


@dataclass(frozen=True)
class Form:
    """The text of ``cells`` groups of ``channels`` numbers from 0 to ``limit`` - 1."""

    cells: int
    channels: int
    limit: int
    style: str = "spaced"

    @property
    def width(self) -> int:
        """Digits of a number."""
        return len(f"{self.limit - 1:{_DIGITS[STYLES[self.style].base][0]}}")

    def write(self, values: Ints) -> str:
        """The text of values [cells, channels] int64."""
        return ",".join(self.cell([self.number(int(n)) for n in cell]) for cell in values)

    def cell(self, numbers: Sequence[str]) -> str:
        """A cell of written numbers."""
        style = STYLES[self.style]
        return style.before + style.between.join(numbers)

    def number(self, value: int) -> str:
        """A number as it is written."""
        return f"{value:0{self.width}{_DIGITS[STYLES[self.style].base][0]}}"

    def read(self, text: str) -> Ints | None:
        """Values [cells, channels] int64 of a text; None for any text that is no such answer.

        White space around cells does not matter, nor that between spaced numbers or their leading zeros;
        how many numbers there are, their order and their range do. The text may be anything: it comes
        from a model.
        """
        if len(text) > _MAX:
            return None
        cells = [self._parts(cell.strip()) for cell in text.split(",")]
        if len(cells) != self.cells or any(len(cell) != self.channels for cell in cells):
            return None
        flat = [number for cell in cells for number in cell]
        base = STYLES[self.style].base
        if not all(re.fullmatch(_DIGITS[base][1], number) for number in flat):
            return None
        values = np.array([int(number, base) for number in flat], np.int64)
        return values.reshape(-1, self.channels) if values.max() < self.limit else None

    def _parts(self, cell: str) -> list[str]:
        """What stands where the numbers of a cell should."""
        style, width = STYLES[self.style], self.width
        if not cell.startswith(style.before):
            return []
        cell = cell[len(style.before) :]
        if style.between:
            return cell.split()
        if len(cell) != width * self.channels:
            return []
        return [cell[i : i + width] for i in range(0, len(cell), width)]


def index_scores(said: Ints | None, true: Ints) -> dict[str, float]:
    """Scores of codebook indices, [cells, 1] each; None: an answer that could not be read.

    ``index_accuracy``: share of right indices; ``readable``: whether it could be read at all.
    """
    if said is None:
        return {"index_accuracy": 0.0, "readable": 0.0}
    return {"index_accuracy": float((said == true).mean()), "readable": 1.0}


def colour_scores(said: Ints | None, true: Ints, levels: int) -> dict[str, float]:
    """Scores of colours, [cells, 3] levels each; None: an answer that could not be read.

    ``colour_error``: mean absolute difference of a channel on the scale of 0 to 255, levels taken at
    their middle; what could not be read is as wrong as can be, 255. ``cell_accuracy``: share of cells
    whose three channels are all right to the level.
    """
    if said is None:
        return {"colour_error": 255.0, "cell_accuracy": 0.0, "readable": 0.0}
    error = float(np.abs(said - true).mean()) * 256 / levels
    return {
        "colour_error": min(error, 255.0),
        "cell_accuracy": float((said == true).all(1).mean()),
        "readable": 1.0,
    }
