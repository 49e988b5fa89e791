"""What Parquet and Arrow files share: rows out of columns, a block at a time.

A block is a part of a row group (Parquet) or a record batch (Arrow). The last ones are kept, some
row groups' worth of all files together, so that reading in order decodes each once; nothing ever
holds a whole file.
pyarrow says what it finds wrong in its own words, which change and may hold bytes of the file;
here a damaged block has one reason. Arrow's own rule for files of strangers is kept: every block
is validated in full before a value is looked at.
"""

from __future__ import annotations

import os
import threading
from abc import abstractmethod
from bisect import bisect_right, insort
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

from oculi.data.container import MAX_ROW_BYTES, Container, Found, Row, RowRef, attempt
from oculi.data.content import wrong
from oculi.data.forms import KEYS, KNOWN
from oculi.data.images import MAX_BYTES
from oculi.data.opened import OPENED
from oculi.data.sample import RowError
from oculi.errors import DataError, shown

CACHE_BYTES: Final = 256 * 2**20  # of a process
# Columns of nulls have rows without bytes; so many are data, more are a bomb.
_FREE_ROWS: Final = 2**16

DAMAGED: Final = "cannot be decoded: damaged, or larger than memory"

# pyarrow has no types. A Block is a RecordBatch with the columns in `keys`, a Group is its number in
# a RowRef, its rows where they are known beforehand, and the bytes of the file up to its end.
Block = Any
Group = tuple[int, int | None, int]


class _Open:
    """What one process has open of a file: the reader, and the blocks it used last."""

    def __init__(self, reader: Any) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.reader = reader
        self.blocks: dict[tuple[int, int], Block] = {}  # by group and first row; used last is last
        self.starts: dict[int, list[int]] = {}  # first rows of the blocks, by group
        self.bytes = 0
        self.going: tuple[int, int, Iterator[Block]] | None = None  # group, next row, its blocks

    def find(self, group: int, row: int) -> tuple[int, Block] | None:
        """The block that holds a row and the number of its first row, if it was kept."""
        starts = self.starts.get(group, [])
        before = bisect_right(starts, row)
        if not before:
            return None
        start = starts[before - 1]
        block = self.blocks.pop((group, start))
        self.blocks[group, start] = block
        return (start, block) if row < start + block.num_rows else None

    def keep(self, group: int, start: int, block: Block) -> None:
        if (group, start) not in self.blocks:
            self.bytes += block.nbytes
            insort(self.starts.setdefault(group, []), start)
        self.blocks[group, start] = block

    def forget(self) -> int:
        """Let the block go that was used longest ago; returns its bytes."""
        group, start = next(iter(self.blocks))
        size: int = self.blocks.pop((group, start)).nbytes
        self.starts[group].remove(start)
        self.bytes -= size
        return size


class Columnar(Container):
    """A file of columns. A row's place is its group's number and its own in the group."""

    unit: ClassVar[str] = "row"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._live: _Open | None = None
        self.keys = KEYS

    def also_read(self, keys: Collection[str]) -> None:
        self.keys |= frozenset(keys)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_live": None}

    def close(self) -> None:
        super().close()
        self._live = None

    def rows(self) -> Iterator[Found]:
        number = 0
        try:
            reader = self._reader()
            other = _other_columns(self._names(reader), self.keys)
            groups = self._groups(reader)
        except RowError as error:
            yield Found(RowRef(0, 0, 0), None, error.reason)
            return
        for group, rows, self.done in groups:
            start = 0
            try:
                for block in self._blocks(reader, group):
                    for i in range(block.num_rows):
                        number += 1
                        ref = RowRef(group, start + i, number)
                        yield attempt(ref, partial(_row, block, i, other))
                    start += block.num_rows
                if rows is not None and start != rows:
                    raise RowError(f"there are {start} of {rows} rows")
            except RowError as error:
                lost = 1 if rows is None else max(1, rows - start)
                last = "the last" if rows is None else number + lost
                reason = f"rows {number + 1} to {last}: {error.reason}"
                yield Found(RowRef(group, start, number + 1), None, reason)
                number += lost

    def read(self, ref: RowRef) -> Row:
        live = self._opened()
        with live.lock:
            start, block = self._block(live, ref.offset, ref.length)
        return _row(block, ref.length - start, ())

    def _opened(self) -> _Open:
        live = self._live
        if live is None or live.pid != os.getpid():  # what another process opened is not ours
            self._unchanged()
            try:
                live = self._live = _Open(self._reader())
            except RowError as error:
                raise DataError(f"{self.path}: {error.reason}") from None
        OPENED.use(self)
        return live

    def _block(self, live: _Open, group: int, row: int) -> tuple[int, Block]:
        """The block of a group that holds a row, and the number of its first row."""
        with OPENED.lock:
            found = live.find(group, row)
        if found is not None:
            return found
        going, live.going = live.going, None
        if going is None or going[0] != group or going[1] > row:
            going = group, 0, self._blocks(live.reader, group)
        _, start, blocks = going
        for block in blocks:
            with OPENED.lock:
                live.keep(group, start, block)
                _make_room(live)
            if row < start + block.num_rows:
                live.going = group, start + block.num_rows, blocks
                return start, block
            start += block.num_rows
        raise RowError("the row is gone")

    @abstractmethod
    def _reader(self) -> Any:
        """Open the file; raises RowError when it is none of its kind."""

    @abstractmethod
    def _names(self, reader: Any) -> list[str]:
        """Names of all columns; raises RowError."""

    @abstractmethod
    def _groups(self, reader: Any) -> Iterable[Group]:
        """Every group in order; raises RowError at once, or not at all."""

    @abstractmethod
    def _blocks(self, reader: Any, group: int) -> Iterator[Block]:
        """The validated blocks of a group; raises RowError at damage."""


def _make_room(last: _Open) -> None:
    """Let blocks go until those of all files fit, first those of the file used longest ago."""
    files = [file._live for file in OPENED.files() if isinstance(file, Columnar)]
    lives = [live for live in files if live is not None]
    total = sum(live.bytes for live in lives)
    for live in lives:
        while total > CACHE_BYTES and len(live.blocks) > (live is last):
            total -= live.forget()


def guard(step: Any, reason: str = DAMAGED, but: tuple[type[Exception], ...] = ()) -> Any:
    """Take a step of pyarrow; whatever it raises for bad bytes becomes one reason.

    Raises:
        RowError: with that reason, or as ``step`` has raised it.
        MemoryError: Python's own, which is no fault of the file.
        others: those of ``but``.
    """
    try:
        return step()
    except Exception as error:
        # ArrowInvalid, OSError, ArrowMemoryError for absurd sizes, UnicodeDecodeError, KeyError.
        if type(error) in (MemoryError, RowError, *but):
            raise
        raise RowError(reason) from None


def validated(block: Block) -> Block:
    """Check offsets of a block, before which none of its values may be touched."""
    try:
        guard(lambda: block.validate(full=True))
    except RowError:
        # Text that is not UTF-8 is an offence of its row alone, which reading that row will show.
        guard(lambda: _as_bytes(block).validate(full=True))
    most = 8 * block.nbytes + _FREE_ROWS
    longest = max(map(_longest, block.columns), default=0)
    if max(longest, block.num_rows) > most:
        wrong(f"claims {max(longest, block.num_rows)} values in {block.nbytes} bytes")
    return block


def _as_bytes(block: Block) -> Block:
    import pyarrow as pa

    columns = [column.view(_bytes_type(column.type)) for column in block.columns]
    return pa.RecordBatch.from_arrays(columns, block.schema.names)


def _bytes_type(type: Any) -> Any:
    """The type with bytes in the place of text."""
    import pyarrow as pa

    if pa.types.is_string(type):
        return pa.binary()
    if pa.types.is_large_string(type):
        return pa.large_binary()
    if pa.types.is_list(type) or pa.types.is_large_list(type):
        field = type.value_field.with_type(_bytes_type(type.value_type))
        return pa.list_(field) if pa.types.is_list(type) else pa.large_list(field)
    if pa.types.is_struct(type):
        fields = [type.field(i) for i in range(type.num_fields)]
        return pa.struct([field.with_type(_bytes_type(field.type)) for field in fields])
    return type


def _longest(array: Any) -> int:
    """Length of the longest array within an array; one of nulls may be long without a byte."""
    import pyarrow as pa

    if pa.types.is_struct(array.type):
        below = [array.field(i) for i in range(array.type.num_fields)]
    else:
        below = [getattr(array, name) for name in ("values", "storage") if hasattr(array, name)]
    return max([len(array), *map(_longest, below)])


def _other_columns(names: list[str], read: Collection[str]) -> tuple[str, ...]:
    """The columns that are not read; raises RowError when none is left or two share a name."""
    if not set(read).intersection(names):
        keys = ", ".join(map(shown, names[:12])) or "none"
        wrong(f"unknown format: the columns are {keys}; {KNOWN}")
    twice = next((name for name in names if name in read and names.count(name) > 1), None)
    if twice is not None:
        wrong(f"two columns are named {shown(twice)}")
    return tuple(name for name in names if name not in read)


def _row(block: Block, index: int, other: tuple[str, ...]) -> Row:
    """One row as plain values; columns that are not read stand in it as None, for messages."""

    def read() -> Row:
        try:
            values: Row = block.slice(index, 1).to_pylist()[0]
        except UnicodeDecodeError:
            raise RowError("a text is not valid UTF-8") from None
        return values

    values: Row = guard(read, "a value cannot be read, as of a date out of range")
    for key, value in values.items():
        texts, data = _weigh(value)
        if texts > MAX_ROW_BYTES:
            wrong(f"{shown(key)} holds a text of more than {MAX_ROW_BYTES} bytes")
        if data > MAX_BYTES:
            wrong(f"{shown(key)} holds more than {MAX_BYTES} bytes")
    return values | dict.fromkeys(other)


def _weigh(value: object) -> tuple[int, int]:
    """Characters of text and bytes of data in a value."""
    if isinstance(value, str):
        return len(value), 0
    if isinstance(value, bytes):
        return 0, len(value)
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    texts = data = 0
    for each in below:
        more, also = _weigh(each)
        texts, data = texts + more, data + also
    return texts, data
