"""What every kind of data file offers: its rows in order, and each of them again at random.

A row's place is two numbers that mean something to its container alone, and the number that names
the row to people: 16 bytes in all, so that tens of millions of rows can be held.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from oculi.data.opened import OPENED
from oculi.data.sample import RowError
from oculi.errors import DataError

Row = dict[str, Any]

# Of one row's text; pictures have limits of their own in `oculi.data.images`.
MAX_ROW_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class RowRef:
    """Where a row lies; `line` counts from 1, in lines or rows as its container's `unit` says."""

    offset: int
    length: int
    line: int


@dataclass(frozen=True, slots=True)
class Found:
    """A row as it was found, or, with `row` None, the problem that stands in its place."""

    ref: RowRef
    row: Row | None
    problem: str = ""
    id: str = ""


class _Descriptor:
    """An open file, closed when the last who uses it lets go: a thread may be reading."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


class Container:
    """A data file. Holds no open file when pickled and shares no file position with anyone.

    It is closed when many others have been used since, and opens again by itself.

    Making one raises DataError when the file cannot be had; `rows` and `read` raise it when the
    file cannot be opened or was changed in between. `note` is advice about the file, where reading
    it has given any.
    """

    kind: ClassVar[str] = ""
    unit: ClassVar[str] = "line"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done = 0
        self.note = ""
        self._open: _Descriptor | None = None
        self._state = self._status()

    @abstractmethod
    def rows(self) -> Iterator[Found]:
        """Yield every row in order. `done` follows, up to `size`."""

    @abstractmethod
    def read(self, ref: RowRef) -> Row:
        """Return one row again; raises RowError when it has become unreadable."""

    def also_read(self, keys: Collection[str]) -> None:
        """Give these keys of a row too; a container may leave out what no form of row uses."""

    def prime(self) -> None:
        """Learn what `read` must know about the file, where no pass by `rows` came before."""

    @property
    def size(self) -> int:
        """What `done` is out of: bytes, or entries of a folder."""
        return self._state[0]

    @property
    def stamp(self) -> tuple[int, int]:
        """Size and time of change: another stamp is another file."""
        return self._state

    def close(self) -> None:
        """Close what is open; the next access opens it again."""
        self._open = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None}

    def _at(self, offset: int, length: int) -> bytes:
        """Read without a file position, so that threads and forked workers share the object."""
        file = self._file()
        try:
            return os.pread(file.number, length, offset)
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror or 'cannot be read'}") from None

    def _file(self) -> _Descriptor:
        file = self._open
        if file is None:
            self._unchanged()
            try:
                file = self._open = _Descriptor(os.open(self.path, os.O_RDONLY))
            except OSError as error:
                raise DataError(f"{self.path}: {error.strerror or 'cannot be read'}") from None
        OPENED.use(self)
        return file

    def _unchanged(self) -> None:
        if self._status() != self._state:
            raise DataError(f"{self.path}: changed since it was first read; start again")

    def _status(self) -> tuple[int, int]:
        try:
            status = self.path.stat()
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror or 'cannot be read'}") from None
        return status.st_size, status.st_mtime_ns


def attempt(ref: RowRef, read: Callable[[], Row], id: str = "") -> Found:
    """Read a row; what is wrong with it becomes the problem that `Found` carries."""
    try:
        return Found(ref, read())
    except RowError as error:
        return Found(ref, None, error.reason, error.id or id)
