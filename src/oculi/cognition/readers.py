"""The two kinds of question: what is asked, of which area, and the true answer.

VLSA's templates were in an appendix that is not published; these are ours. A place is a vertex: the
upper left corner of an area that always lies inside the picture (see ``PixelReader``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oculi.cognition.cache import IndexCache
from oculi.cognition.codebook import Codebook
from oculi.cognition.form import Form, Ints, colour_scores, index_scores
from oculi.specs.cognition import CodesSpec, CognitionSpec, PixelsSpec

Place = tuple[int, int]  # down, across
Floats = NDArray[np.float64]

PIXEL_QUESTIONS = (
    "The quarter of the image that begins {x} % from the left and {y} % from the top, in {cells} cells: "
    "which RGB values from 0 to {top} do they have?",
    "Give the mean RGB values, 0 to {top}, of {cells} cells of the quarter of the image whose top left "
    "corner is at {x} % of the width and {y} % of the height.",
    "Which colours, as RGB from 0 to {top}, are in the quarter of the image from {x} % across and {y} % "
    "down on? Answer for {cells} cells.",
    "RGB from 0 to {top}, {cells} cells, quarter of the image at left {x} %, top {y} %?",
)
CODE_QUESTIONS = (
    "The image is {whole} codebook indices. Which are the {cells} from row {row}, column {column} on?",
    "Give the {cells} codebook indices of the image that begin at row {row} and column {column} of "
    "{whole}.",
    "Which indices does the codebook have for the image, {cells} of the {whole} from row {row}, column "
    "{column}?",
    "Codebook indices, {cells} of {whole}, row {row}, column {column}?",
)


class Reader(Protocol):
    """A kind of question about one picture.

    Attributes:
        name: ``pixels`` or ``codes``. label: with its settings, for names of tasks.
        share: of draws that it is asked in.
        form: of its answers. places: how many rows and columns of places there are to ask about.
        wordings: how many ways it has to ask.
    """

    @property
    def name(self) -> str: ...

    @property
    def label(self) -> str: ...

    @property
    def share(self) -> float: ...

    @property
    def form(self) -> Form: ...

    @property
    def places(self) -> tuple[int, int]: ...

    @property
    def wordings(self) -> int: ...

    def question(self, place: Place, wording: int) -> str:
        """The question in words."""

    def values(self, picture: Image.Image, place: Place) -> Ints:
        """The true answer, [cells, channels] int64."""

    def check(self) -> None:
        """Raises DataError or CheckpointError for what it reads from and cannot."""

    def score(self, said: str, true: str) -> dict[str, float]:
        """Scores of an answer; any text is an answer, one that cannot be read is wrong."""


class PixelReader:
    """Mean colours of the cells of a quarter of the picture (VLSA, section 3.2).

    The quarter has half of the picture's width and half of its height. Its vertex lies at whole per
    cents, 0 to 50 across and down: the paper takes any vertex, and does not say what becomes of a
    quarter that leaves the picture; where all of it lies inside, it stays a quarter, and every question
    has as many values. Cells divide it evenly; a cell's colour is the mean over its area, of pixels at
    its edge as much as lies inside, and so a grid as fine as the pixels gives their values. The mean is
    rounded to a whole value, and that to a level.
    """

    name = "pixels"
    places = (51, 51)
    wordings = len(PIXEL_QUESTIONS)

    def __init__(self, spec: PixelsSpec) -> None:
        self.spec, self.share = spec, spec.share
        (self._rows, self._columns), self._levels = spec.grid, spec.levels
        self.form = Form(self._rows * self._columns, 3, spec.levels, spec.text)
        style = "" if spec.text == "spaced" else f"-{spec.text}"
        self.label = f"pixels-{self._rows}x{self._columns}-{self._levels}{style}"

    def question(self, place: Place, wording: int) -> str:
        """As the protocol says."""
        cells, top = f"{self._rows} x {self._columns}", self.form.number(self._levels - 1)
        return PIXEL_QUESTIONS[wording].format(x=place[1], y=place[0], cells=cells, top=top)

    def values(self, picture: Image.Image, place: Place) -> Ints:
        """As the protocol says: [rows * columns, 3] int64 below ``levels``."""
        width, height = picture.size
        top, rows = _shares(place[0], self._rows, height)
        left, columns = _shares(place[1], self._columns, width)
        area = picture.crop((left, top, left + columns.shape[1], top + rows.shape[1]))
        pixels = np.asarray(area.convert("RGB")).astype(np.float64)
        lines = (rows @ pixels.reshape(len(pixels), -1)).reshape(self._rows, -1, 3)
        sums = (columns @ lines).astype(np.int64)
        whole = 100 * height * 100 * width
        nearest = (2 * sums + whole) // (2 * whole)
        return nearest.reshape(-1, 3) * self._levels // 256

    def check(self) -> None:
        """It reads the picture alone."""

    def score(self, said: str, true: str) -> dict[str, float]:
        """As the protocol says: see ``colour_scores``."""
        return colour_scores(self.form.read(said), _true(self.form, true), self._levels)


class CodeReader:
    """Codebook indices of a window of cells (VLSA, equation 5).

    The paper's target is all of them; a window of them at a random vertex costs what is set.
    """

    name = "codes"
    wordings = len(CODE_QUESTIONS)

    def __init__(self, spec: CodesSpec) -> None:
        self.spec, self.share = spec, spec.share
        self.codebook = Codebook(spec.vq, spec.size, spec.signed)
        self._grid = self.codebook.rows, self.codebook.columns
        # A window that is larger than the grid is all of it.
        self._rows, self._columns = (
            min(pair) for pair in zip(spec.window, self._grid, strict=True)
        )
        self.form = Form(self._rows * self._columns, 1, self.codebook.entries)
        self.places = self._grid[0] - self._rows + 1, self._grid[1] - self._columns + 1
        self.label = f"codes-{self._rows}x{self._columns}"

    @cached_property
    def _cache(self) -> IndexCache | None:
        cache = self.spec.cache
        return None if cache is None else IndexCache(Path(cache), self.codebook)

    def check(self) -> None:
        """As the protocol says: the cache, and the encoder that what is not in it needs."""
        _ = self._cache
        self.codebook.load()

    def question(self, place: Place, wording: int) -> str:
        """As the protocol says; rows and columns count from 1."""
        whole, cells = f"{self._grid[0]} x {self._grid[1]}", f"{self._rows} x {self._columns}"
        row, column = place[0] + 1, place[1] + 1
        return CODE_QUESTIONS[wording].format(whole=whole, cells=cells, row=row, column=column)

    def values(self, picture: Image.Image, place: Place) -> Ints:
        """As the protocol says: [rows * columns, 1] int64 below the codebook's entries."""
        found = self._cache.find(picture) if self._cache is not None else None
        indices = self.codebook.indices(picture) if found is None else found
        window = indices[place[0] : place[0] + self._rows, place[1] : place[1] + self._columns]
        return window.reshape(-1, 1).astype(np.int64)

    def score(self, said: str, true: str) -> dict[str, float]:
        """As the protocol says: see ``index_scores``."""
        return index_scores(self.form.read(said), _true(self.form, true))


def readers(spec: CognitionSpec) -> list[Reader]:
    """The kinds of question of a stage; raises CheckpointError for a codebook that is none."""
    asked: list[Reader] = []
    if spec.codes is not None:
        asked.append(CodeReader(spec.codes))
    if spec.pixels is not None:
        asked.append(PixelReader(spec.pixels))
    return asked


def costliest(reader: Reader, count: Callable[[str], int]) -> str:
    """An answer of which none has more tokens, where numbers are cut alone as digits are.

    Args:
        reader: whose answers. count: tokens of a text.
    """
    form = reader.form
    number = max(map(form.number, range(form.limit)), key=lambda text: count("," + text))
    return ",".join([form.cell([number] * form.channels)] * form.cells)


def _shares(vertex: int, cells: int, side: int) -> tuple[int, Floats]:
    """How much of each pixel lies in each cell along a side of the picture.

    In units of which a pixel has 200 * cells: then all numbers are whole, sums of them are exact in
    float64 below 2**53, and the answer is the same on every machine.

    Args:
        vertex: where the first cell begins, in per cent. cells: that half of the side is divided into.
        side: in pixels.

    Returns:
        the first pixel, and the shares of it and those behind it [cells, pixels], 100 * side a cell.
    """
    pixel, cell, start = 200 * cells, 100 * side, 2 * cells * vertex * side
    first, end = start // pixel, -(-(start + cells * cell) // pixel)
    cell_begins = start + cell * np.arange(cells)[:, None]
    pixel_begins = pixel * np.arange(first, end)
    ends = np.minimum(cell_begins + cell, pixel_begins + pixel)
    inside = (ends - np.maximum(cell_begins, pixel_begins)).clip(min=0)
    return first, inside.astype(np.float64)


def _true(form: Form, text: str) -> Ints:
    values = form.read(text)
    if values is None:
        raise ValueError(f"the true answer {text[:60]!r} is no answer of this form")
    return values
