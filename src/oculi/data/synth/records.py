"""A file to which lines are only added, each on the disk before anything is built on it.

An answer costs money: what was recorded is never asked for again, whatever kills the process.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from oculi import durable
from oculi.errors import DataError


class Journal:
    """Objects as lines of a file, in the order in which they were added; safe to add from threads.

    Opening one takes off a last line that a kill has left without its end. Reading never does.

    Raises:
        DataError: a line is no JSON object.
        DiskError: the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        with durable.disk_errors(str(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            is_new = not path.exists()
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            if is_new:
                durable.sync(path.parent)
            self._size = _whole(self._fd)
            if self._size < os.fstat(self._fd).st_size:
                os.ftruncate(self._fd, self._size)
                os.fsync(self._fd)

    def add(self, value: dict[str, Any]) -> int:
        """Add a line and return where it begins, once it is on the disk; raises DiskError."""
        line = json.dumps(value, separators=(",", ":")).encode() + b"\n"
        with self._lock, durable.disk_errors(str(self.path)):
            start = self._size
            durable.reach("append", self.path)
            try:
                _write(self._fd, line)
                os.fsync(self._fd)
            except OSError:
                os.ftruncate(self._fd, start)  # a full disk takes half a line
                raise
            durable.reach("appended", self.path)
            self._size += len(line)
            return start

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield each line's place and value."""
        start = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield start, self._value(line, f"line {number}")
                start += len(line)

    def read(self, start: int) -> dict[str, Any]:
        """The value of the line that begins at a place."""
        with self.path.open("rb") as file:
            file.seek(start)
            return self._value(file.readline(), f"byte {start}")

    def _value(self, line: bytes, where: str) -> dict[str, Any]:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise DataError(
                f"{self.path}: {where} is damaged; take it out, and what it held is lost"
            )
        return value

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _whole(descriptor: int) -> int:
    """Bytes up to the end of the last line that has one."""
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - 2**16)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
