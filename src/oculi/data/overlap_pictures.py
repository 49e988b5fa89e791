"""The pictures of a data set as records and places, for `oculi.data.overlap` to compare."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from oculi.data.fingerprint import RECORD, fingerprint_all
from oculi.data.folder import Names
from oculi.data.formats import BadRow, FileScan
from oculi.data.forms import find_form
from oculi.data.kinds import find_files
from oculi.data.sample import ImageRef, ImageSource, Sample
from oculi.errors import DataError, shown

Progress = Callable[[int, int], None]
_PIECE: Final = 16  # pictures that a worker reads at a time


@dataclass(frozen=True, slots=True)
class Place:
    """Where a picture is: picture `number` (from 1) of row `id` in `line` of `file`."""

    file: str
    line: int
    id: str
    number: int
    image: str

    def __str__(self) -> str:
        picture = f"{shown(self.image, 100)}" if self.image else f"picture {self.number}"
        return f"{self.file}:{self.line}: row {shown(self.id)}, {picture}"


class Pictures:
    """The pictures of one side: a record and a place for each, and the rows that have none to give.

    `rows` counts those read, good and bad.
    """

    def __init__(self, name: str) -> None:
        self.name, self.rows = name, 0
        self.bad_rows: list[BadRow] = []
        self._records = bytearray()
        self._places = Names()  # as JSON: no NUL, and a few bytes each

    def __len__(self) -> int:
        return len(self._places)

    def take_records(self) -> NDArray[Any]:
        """RECORD, [N]; they are no longer held here."""
        records, self._records = self._records, bytearray()
        return np.frombuffer(records, dtype=RECORD) if records else np.zeros(0, RECORD)

    def add(self, place: Place, record: bytes | str) -> None:
        """A record, or what is wrong with the picture."""
        if isinstance(record, str):
            self.bad_rows.append(BadRow(place.id, place.line, record, place.file))
            return
        self._records += record
        self._places.add(json.dumps(list(asdict(place).values())))

    def close(self) -> None:
        """After the last one."""
        self._places.close()

    def place(self, number: int) -> Place:
        return Place(*json.loads(self._places[number]))


def read_pictures(
    path: Path,
    image_root: Path | None = None,
    *,
    form: str | None = None,
    workers: int = 1,
    on_progress: Progress | None = None,
) -> Pictures:
    """Fingerprint all pictures of a file, a pattern or a folder; bad input never raises.

    What cannot be read is in `bad_rows`, a whole file without a line. A row need not end with an
    answer. `on_progress` is called with the bytes of the data files done and in total.

    Raises:
        DataError: `form` is no format, or a worker was killed.
    """
    if form is not None:
        find_form(form)
    side = Pictures(str(path))
    scans: list[FileScan] = []
    for file in _files(path, side):
        try:
            scans.append(FileScan(file, image_root, form=form, for_training=False))
        except DataError as error:
            _note(side, file, error)
    waiting: list[list[Place]] = []
    pieces = _pieces(_walk(scans, side, on_progress), waiting)
    for records in fingerprint_all(pieces, workers):
        for place, record in zip(waiting.pop(0), records, strict=True):
            side.add(place, record)
    side.close()
    return side


def _files(path: Path, side: Pictures) -> list[Path]:
    try:
        return find_files(path)
    except DataError as error:
        _note(side, path, error)
        return []


def _walk(
    scans: list[FileScan], side: Pictures, on_progress: Progress | None
) -> Iterator[tuple[Place, ImageSource]]:
    """Yield every picture with its place; bad rows go to `side`."""
    before, total = 0, sum(rows.size for rows in scans)
    for rows in scans:
        try:
            for found in rows:
                side.rows += 1
                if isinstance(found, BadRow):
                    side.bad_rows.append(found)
                else:
                    yield from _places(str(rows.path), found[0].line, found[1])
                if on_progress is not None:
                    on_progress(before + rows.done, total)
        except DataError as error:
            _note(side, rows.path, error)
        rows.container.close()
        before += rows.size


def _places(file: str, line: int, sample: Sample) -> Iterator[tuple[Place, ImageSource]]:
    for number, source in enumerate(sample.images, start=1):
        name = ""
        if isinstance(source, ImageRef):
            name = source.name or ("" if source.path is None else str(source.path))
        yield Place(file, line, sample.id, number, name), source


def _pieces(
    pictures: Iterable[tuple[Place, ImageSource]], waiting: list[list[Place]]
) -> Iterator[list[ImageSource]]:
    """Yield the sources in pieces and leave the places of each in `waiting`."""
    pictures = iter(pictures)
    while piece := list(itertools.islice(pictures, _PIECE)):
        waiting.append([place for place, _ in piece])
        yield [source for _, source in piece]


def _note(side: Pictures, path: Path, error: DataError) -> None:
    side.bad_rows.append(BadRow("", 0, str(error).removeprefix(f"{path}: "), str(path)))
