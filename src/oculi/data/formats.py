"""Read conversations with pictures from the two file formats that people have.

LLaVA and messages rows, as a JSON list or as JSON Lines; `oculi.data.rows` says what a row may
hold. A bad row is reported with its line and its reason and left out; it never ends the reading.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oculi.data.jsonrows import RawRow, raw_rows
from oculi.data.rows import KNOWN, Form, build_sample, decode_row, guess_id, parse_row, recognise
from oculi.data.sample import RowError, Sample
from oculi.errors import DataError, shown

__all__ = ["BadRow", "FileScan", "FileSource", "Form", "RowRef", "parse_row", "scan"]


@dataclass(frozen=True, slots=True)
class RowRef:
    """Where a good row lies in its file; `line` counts from 1."""

    offset: int
    length: int
    line: int


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used. `id` is empty and `line` 0 where there is none to name."""

    id: str
    line: int
    reason: str
    file: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {f'row {shown(self.id)}: ' if self.id else ''}{self.reason}"


class FileScan:
    """One pass over a data file: every row as (RowRef, Sample) or BadRow, in file order.

    No image is opened. `form` is known from the first row whose keys tell, `duplicates` counts
    ids seen before, `done` is how many bytes have been read. Iterating raises DataError when the
    file cannot be read, or at its end when no row had the keys of a known format.
    """

    def __init__(
        self, path: Path, image_root: Path | None = None, *, for_training: bool = True
    ) -> None:
        self.path = Path(path)
        self.root = self.path.parent if image_root is None else Path(image_root)
        self.for_training = for_training
        self.form: Form | None = None
        self.duplicates = 0
        self.done = 0
        self._ids: set[int] = set()

    def __iter__(self) -> Iterator[tuple[RowRef, Sample] | BadRow]:
        first = ""
        try:
            with self.path.open("rb") as file:
                for row in raw_rows(file):
                    found = self._read(row)
                    self.done = row.offset + len(row.raw)
                    if isinstance(found, BadRow):
                        first = first or f"line {found.line}: {found.reason}"
                    yield found
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror or 'cannot be read'}") from None
        if self.form is None:
            what = f"no row can be used; the first: {first}" if first else "the file has no rows"
            raise DataError(f"{self.path}: {what}. Known: {KNOWN}")

    def _read(self, row: RawRow) -> tuple[RowRef, Sample] | BadRow:
        try:
            if row.problem:
                raise RowError(row.problem)
            value = decode_row(row.raw, row.line)
            self.form = self.form or recognise(value)
            sample = build_sample(value, self.form, self.path, row.line, self.root)
            sample.validate(for_training=self.for_training)
        except RowError as error:
            return BadRow(error.id or guess_id(row.raw), row.line, error.reason, str(self.path))
        self._count(sample.id)
        return RowRef(row.offset, len(row.raw), row.line), sample

    def _count(self, id: str) -> None:
        before = len(self._ids)
        self._ids.add(hash(id))  # of a fixed size, and a collision costs one count
        self.duplicates += len(self._ids) == before


def scan(
    path: Path, image_root: Path | None = None, *, for_training: bool = True
) -> Iterator[RowRef | BadRow]:
    """Yield the place of every good row and every bad row of a file, in file order.

    Raises DataError as `FileScan` does.
    """
    for found in FileScan(path, image_root, for_training=for_training):
        yield found if isinstance(found, BadRow) else found[0]


class FileSource:
    """The good rows of one data file as samples, read again at every access.

    Only offset, length and line of each row are held (16 bytes a row). Reads take no shared
    file position, so one object serves threads and forked workers; it can be pickled.
    Raises DataError when the file cannot be read, is of no known format, or was changed since.
    """

    def __init__(
        self, path: Path, image_root: Path | None = None, *, for_training: bool = True
    ) -> None:
        self.path = Path(path)
        self._fd: int | None = None
        self._for_training = for_training
        self.bad_rows: list[BadRow] = []
        offsets, lengths, lines = array("q"), array("i"), array("i")
        rows = FileScan(self.path, image_root, for_training=for_training)
        self._state = self._status()
        for found in rows:
            if isinstance(found, BadRow):
                self.bad_rows.append(found)
                continue
            ref = found[0]
            offsets.append(ref.offset)
            lengths.append(ref.length)
            lines.append(ref.line)
        assert rows.form is not None  # the scan raises otherwise
        self.form: Form = rows.form
        self.root = rows.root
        self.duplicates = rows.duplicates
        self._offsets = np.array(offsets, dtype=np.int64)
        self._lengths = np.array(lengths, dtype=np.int32)
        self._lines = np.array(lines, dtype=np.int32)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} good rows; there is no row {index}")
        length, line = int(self._lengths[index]), int(self._lines[index])
        raw = os.pread(self._file(), length, int(self._offsets[index]))
        return parse_row(
            raw, self.path, line, self.root, self.form, for_training=self._for_training
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def close(self) -> None:
        """Close the file; the next access opens it again."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "_fd", None) is not None:
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_fd": None}

    def _file(self) -> int:
        if self._fd is None:
            if self._status() != self._state:
                raise DataError(f"{self.path}: changed since it was first read; start again")
            self._fd = os.open(self.path, os.O_RDONLY)
        return self._fd

    def _status(self) -> tuple[int, int]:
        try:
            status = self.path.stat()
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror or 'cannot be read'}") from None
        return status.st_size, status.st_mtime_ns
