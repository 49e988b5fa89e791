"""Tables in CSV or TSV: a header, then a row of fields per record.

A record may go over several lines inside quotes, so one lost quote could swallow everything up to
the next. A record of several lines that does not fit the header therefore costs its first line
alone, and reading goes on with the second.
"""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, ClassVar

from oculi.data.container import Container, Found, Row, RowRef, attempt
from oculi.data.content import first_twice, wrong
from oculi.data.sample import RowError
from oculi.errors import DataError, shown

MAX_RECORD_BYTES = 2**20
MAX_RECORD_LINES = 1000
_BOM = b"\xef\xbb\xbf"

Line = tuple[int, int, bytes]  # offset, number from 1, bytes with the line's end


class CsvRows(Container):
    """A table in a text file; empty fields are null."""

    kind: ClassVar[str] = "CSV"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        self.header: tuple[str, ...] = ()

    def rows(self) -> Iterator[Found]:
        self.header = ()
        try:
            with self.path.open("rb") as file:
                yield from self._records(_lines(file))
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror or 'cannot be read'}") from None

    def read(self, ref: RowRef) -> Row:
        return self._row(self._at(ref.offset, ref.length))

    def prime(self) -> None:
        next(self.rows(), None)  # the header comes before the first row

    def _records(self, lines: Iterator[Line]) -> Iterator[Found]:
        waiting: deque[Line] = deque()
        for line in lines:
            waiting.append(line)
            while waiting:
                first = waiting.popleft()
                record = _more(first, waiting, lines)
                found = self._found(record)
                if found.row is None and len(record) > 1:
                    waiting.extendleft(reversed(record[1:]))
                    found = self._found(record[:1])
                self.done = found.ref.offset + found.ref.length
                if found.row != {}:  # neither a blank line nor the header
                    yield found
                if found.row is None and not self.header:
                    return

    def _found(self, record: list[Line]) -> Found:
        raw = b"".join(line[2] for line in record)
        ref = RowRef(record[0][0], len(raw), record[0][1])
        if len(raw) > MAX_RECORD_BYTES:
            return Found(ref, None, f"row is longer than {MAX_RECORD_BYTES} bytes")
        if not raw.strip():
            return Found(ref, {})
        return attempt(ref, partial(self._row, raw) if self.header else partial(self._begin, raw))

    def _begin(self, raw: bytes) -> Row:
        names = self._fields(raw.removeprefix(_BOM))
        if (twice := first_twice(names)) is not None:
            wrong(f"the header names the column {shown(twice)} twice")
        self.header = tuple(names)
        return {}

    def _row(self, raw: bytes) -> Row:
        fields = self._fields(raw)
        if len(fields) != len(self.header):
            wrong(f"has {len(fields)} fields where the header has {len(self.header)}")
        return {key: value or None for key, value in zip(self.header, fields, strict=True)}

    def _fields(self, raw: bytes) -> list[str]:
        try:
            said = raw.decode("utf-8")
            # The csv module's own limit of 131072 characters a field stays in force.
            table = list(
                csv.reader(io.StringIO(said, newline=""), strict=True, delimiter=self.delimiter)
            )
        except UnicodeDecodeError as error:
            wrong(f"not valid UTF-8 at byte {error.start + 1} of the row")
        except csv.Error as error:
            if "field limit" in str(error):
                wrong(f"a field is longer than {csv.field_size_limit()} characters")
            raise RowError(f"not valid CSV: {error}") from None
        if len(table) != 1:
            wrong("not valid CSV: a line ends inside the row")
        return table[0]


def _lines(file: BinaryIO) -> Iterator[Line]:
    offset = number = 0
    while raw := file.readline(MAX_RECORD_BYTES + 1):
        number += 1
        start, offset = offset, offset + len(raw)
        yield start, number, raw
        while not raw.endswith(b"\n") and (raw := file.readline(MAX_RECORD_BYTES)):
            offset += len(raw)  # the rest of a line that is too long anyway


def _more(first: Line, waiting: deque[Line], lines: Iterator[Line]) -> list[Line]:
    """The lines of a record: up to the one that closes the last quote, if one does."""
    record = [first]
    quotes, length = first[2].count(b'"'), len(first[2])
    while quotes % 2 and len(record) < MAX_RECORD_LINES and length < MAX_RECORD_BYTES:
        line = waiting.popleft() if waiting else next(lines, None)
        if line is None:
            break
        record.append(line)
        quotes, length = quotes + line[2].count(b'"'), length + len(line[2])
    return record
