"""Where the rows of a JSON list or a JSON Lines file lie, found without parsing them.

A row's exact byte range lets a data set keep two numbers per row and read it again by seek. It
also keeps damage local: a list is cut into elements by brackets and strings alone, so one row
with bad UTF-8 or absurd nesting does not take the rows after it along, as it would with one
`json.load`. After a missing quote or bracket, reading goes on where text next looks like the
beginning of a row. Memory is bounded by the longest row, and time by the length of the file, however
many rows have no end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, ClassVar

from oculi.data.container import MAX_ROW_BYTES, Container, Found, Row, RowRef, attempt
from oculi.data.rows import decode_row, guess_id
from oculi.errors import DataError

_CHUNK = 2**20
# How far the end of a row is sought, once others were sought in vain: so many times as far as was
# read since, and a little to spare. A row that is longer is still found whole where no row seems to
# begin inside it.
_AGAIN = 4
_SPARE = 2**20
_BOM = b"\xef\xbb\xbf"

# Group 1: a whole string. JSON has no raw line breaks in strings, so one ends a broken string
# and the damage with it. Group 2: a string that the data at hand does not finish.
_STRING = rb'("[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*+(?:"|\\?(?=\n)))|(")'
_BETWEEN = re.compile(_STRING + rb"|([{}\[\],])")
_INSIDE = re.compile(_STRING + rb"|([{}\[\]])")
_FIRST_KEY = re.compile(rb'\{\s*"[^"\\\n]*"')
_SPACE = re.compile(rb"[ \t\r\n]*")

_CUT = "the file ends inside this row"
_AFTER = "text after the end of the list"


@dataclass(frozen=True, slots=True)
class RawRow:
    """The bytes of one row as found; `problem` says why they are no row, where that is known."""

    offset: int
    line: int
    raw: bytes
    problem: str = ""


class JsonRows(Container):
    """A JSON list or JSON Lines."""

    kind: ClassVar[str] = "JSON"

    def rows(self) -> Iterator[Found]:
        try:
            with self.path.open("rb") as file:
                for row in raw_rows(file):
                    self.done = row.offset + len(row.raw)
                    yield _found(row)
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror or 'cannot be read'}") from None

    def read(self, ref: RowRef) -> Row:
        return decode_row(self._at(ref.offset, ref.length), ref.line)


def _found(row: RawRow) -> Found:
    ref = RowRef(row.offset, len(row.raw), row.line)
    if row.problem:
        return Found(ref, None, row.problem, guess_id(row.raw))
    return attempt(ref, partial(decode_row, row.raw, row.line), guess_id(row.raw))


class _Window:
    """The unread part of a file from `at` on, with the file offset and line of that place."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.data = b""
        self.at = 0
        self.offset = 0
        self.line = 1

    def grow(self) -> bool:
        """Read on; False at the end of the file. Reads as much again as is held, so that a long
        row costs time in proportion to its length."""
        rest = self.data[self.at :]
        more = self._file.read(max(_CHUNK, len(rest)))
        self.data, self.at = rest + more, 0
        return bool(more)

    def skip(self, count: int) -> None:
        self.line += self.data.count(b"\n", self.at, self.at + count)
        self.offset += count
        self.at += count

    def held(self) -> int:
        return len(self.data) - self.at

    def raw(self, count: int) -> bytes:
        return self.data[self.at : self.at + count]

    def peek(self) -> bytes:
        """Skip white space and return the next byte, empty at the end of the file."""
        while True:
            match = _SPACE.match(self.data, self.at)
            assert match is not None
            self.skip(match.end() - self.at)
            if self.at < len(self.data):
                return self.raw(1)
            if not self.grow():
                return b""


def raw_rows(file: BinaryIO) -> Iterator[RawRow]:
    """Yield every row of a file open at its start, list or lines by the first byte that counts.

    Nothing is dropped: bytes that belong to no row come as a `RawRow` with a `problem`.
    """
    window = _Window(file)
    window.grow()
    if window.data.startswith(_BOM):
        window.skip(len(_BOM))
    start = window.offset
    if window.peek() == b"[":
        yield from _list_rows(window)
        return
    file.seek(start)
    yield from _line_rows(file, start)


def _line_rows(file: BinaryIO, offset: int) -> Iterator[RawRow]:
    line = 0
    while raw := file.readline(MAX_ROW_BYTES + 1):
        line += 1
        start = offset
        offset += len(raw)
        problem = ""
        if len(raw) > MAX_ROW_BYTES:
            problem = f"line is longer than {MAX_ROW_BYTES} bytes"
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(_CHUNK)
                offset += len(raw)
            raw = b""
        row = raw.strip(b" \t\r\n")
        if row or problem:
            indent = len(raw) - len(raw.lstrip(b" \t\r\n"))
            yield RawRow(start + indent, line, row, problem)


def _list_rows(window: _Window) -> Iterator[RawRow]:
    """Yield the elements of the list whose bracket the window stands at."""
    window.skip(1)
    if window.peek() == b"]":
        window.skip(1)
        if window.peek():
            yield _rest(window, _AFTER)
        return
    opening: re.Pattern[bytes] | None = None
    reach = MAX_ROW_BYTES
    while True:
        window.peek()
        opening = opening or _opening(window)
        offset, line = window.offset, window.line
        length, end, problem = _element(window, reach)
        if problem:
            found = _next_opening(window, opening)
            if found is None and reach < MAX_ROW_BYTES:
                reach = MAX_ROW_BYTES  # the last row may be as long as any
                continue
            if found is None:
                yield _rest(window, problem)
                return
            reach = min(MAX_ROW_BYTES, min(reach - length, _SPARE) + _AGAIN * found)
            # Without a problem named here, the parser will say where exactly it stumbles.
            yield RawRow(offset, line, window.raw(found).rstrip(b" \t\r\n,"))
            window.skip(found)
            continue
        reach = min(MAX_ROW_BYTES, reach + _AGAIN * length)
        raw = window.raw(length).rstrip(b" \t\r\n")
        window.skip(length + len(end))
        if raw:
            yield RawRow(offset, line, raw)
        elif end:
            yield RawRow(offset, line, raw, "an empty place in the list: one comma too many")
        if not end:
            problem = 'the file ends before the list does: cut off, or "]" is missing'
            yield RawRow(window.offset, window.line, b"", problem)
            return
        if end == b"]" and window.peek():
            found = _next_opening(window, opening)
            if found is None:
                yield _rest(window, _AFTER)
                return
            yield RawRow(window.offset, window.line, window.raw(found).rstrip(), _AFTER)
            window.skip(found)
        elif end == b"]":
            return


def _element(window: _Window, reach: int) -> tuple[int, bytes, str]:
    """Measure the element at the window's place, growing the window as needed.

    Returns its length, the separator that ended it (empty at the end of the file) and what is
    wrong when its strings and brackets do not pair up: then the length is how far it was sought.
    """
    stack: list[bytes] = []
    opened = {b"{": 0, b"[": 0}
    at = 0
    while True:
        stop = min(len(window.data), window.at + reach)
        token = (_INSIDE if stack else _BETWEEN).search(window.data, window.at + at, stop)
        if token is None or token[2]:
            at = (stop if token is None else token.start()) - window.at
            if window.held() > reach:
                return reach, b"", f"row is longer than {reach} bytes; is a bracket missing?"
            if not window.grow():
                return window.held(), b"", _CUT if stack or token else ""
            continue
        at = token.end() - window.at
        mark = token[3]
        if mark is None:
            if len(token[1]) == 1 or not token[1].endswith(b'"'):
                return at, b"", "a string is not closed at the end of its line"
        elif mark in opened:
            stack.append(mark)
            opened[mark] += 1
        elif mark != b"," and opened[start := b"{" if mark == b"}" else b"["]:
            # Closing past an inner bracket: that row is broken, but it ends here.
            while (inner := stack.pop()) != start:
                opened[inner] -= 1
            opened[start] -= 1
        elif mark != b"}":
            return at - 1, mark, "the list ends inside this row" if stack else ""


def _opening(window: _Window) -> re.Pattern[bytes] | None:
    """Return how rows of this file begin, brace to first key, as the row at hand shows it."""
    match = _FIRST_KEY.match(window.data, window.at)
    return re.compile(rb"[,\[\]}]\s*+(" + re.escape(match[0]) + rb")") if match else None


def _next_opening(window: _Window, opening: re.Pattern[bytes] | None) -> int | None:
    """Return how far off the next row seems to begin, to go on there after a broken one."""
    while opening is not None:
        match = opening.search(window.data, window.at)
        if match:
            return match.start(1) - window.at
        if window.held() > MAX_ROW_BYTES or not window.grow():
            break
    return None


def _rest(window: _Window, problem: str) -> RawRow:
    """Return all that is left as one bad row, and read to the end."""
    row = RawRow(window.offset, window.line, window.raw(window.held()).rstrip(), problem)
    while window.held() or window.grow():
        window.skip(window.held())
    return row
