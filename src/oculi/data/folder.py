"""A folder of pictures with a caption or JSON file of the same name beside each."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

from oculi.data.container import MAX_ROW_BYTES, Container, Found, Row, RowRef, attempt
from oculi.data.grouped import PICTURES, TEXTS, Member, assemble
from oculi.data.images import ImageError, open_file
from oculi.data.sample import ImageRef, RowError
from oculi.errors import DataError, shown

_BETWEEN = "\0\0"  # no file name is empty or holds a NUL
_KNOWN = PICTURES | TEXTS | {"json"}


class FolderRows(Container):
    """The pictures of a folder and of those below it, by name; links to folders are not followed."""

    kind: ClassVar[str] = "folder of pictures"
    unit: ClassVar[str] = "row"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._names = Names()
        seen = hashlib.sha256()
        for folder, files in _walk(path):
            for stem, names in _groups(files).items():
                self._names.add("\0".join((os.path.join(folder, stem), *names)))
                for name in names:
                    status = files[name]
                    seen.update(f"{folder}/{name}:{status}\n".encode("utf-8", "surrogateescape"))
        self._names.close()
        self._stamp = len(self._names), int.from_bytes(seen.digest()[:7])

    def rows(self) -> Iterator[Found]:
        for number in range(len(self._names)):
            ref = RowRef(number, 0, number + 1)
            self.done = number + 1
            key = self._names[number].split("\0")[0]
            yield attempt(ref, partial(self.read, ref), key)

    def read(self, ref: RowRef) -> Row:
        key, *names = self._names[ref.offset].split("\0")
        if any("\ud800" <= c <= "\udfff" for c in key):
            raise RowError(f"the file name {shown(key)} is not UTF-8")
        pictures = [name for name in names if name.rpartition(".")[2].lower() in PICTURES]
        if len(pictures) > 1:
            raise RowError(f"{shown(pictures[0])} and {shown(pictures[1])} share a name", key)
        folder = os.path.dirname(key)
        return assemble(key, [self._member(folder, name) for name in names])

    @property
    def size(self) -> int:
        return len(self._names)

    @property
    def stamp(self) -> tuple[int, int]:
        return self._stamp

    def _member(self, folder: str, name: str) -> Member:
        place = Path(folder, name)
        read = partial(_content, place, self.path)
        return Member(name, 0, read, ImageRef(path=place, root=self.path))


def _content(place: Path, root: Path) -> bytes:
    try:
        with open_file(place, root, place.name, limit=MAX_ROW_BYTES) as file:
            return file.read()
    except ImageError as error:
        raise RowError(f"{shown(place.name)} {error.reason}") from None


def _walk(root: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield every folder as (its path under root, {file name: size and time}), in order of names."""
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        files: dict[str, str] = {}
        below: list[str] = []
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        below.append(os.path.join(folder, entry.name))
                    elif _counts(entry.name):
                        status = entry.stat(follow_symlinks=False)
                        files[entry.name] = f"{status.st_size}:{status.st_mtime_ns}"
        except OSError as error:
            reason = error.strerror or "cannot be read"
            raise DataError(f"{root / folder}: {reason}") from None
        yield folder, dict(sorted(files.items()))
        waiting += sorted(below, reverse=True)


def _counts(name: str) -> bool:
    return not name.startswith(".") and name.rpartition(".")[2].lower() in _KNOWN


def _groups(names: Sequence[str] | dict[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.rpartition(".")[0], []).append(name)
    return groups


class Names:
    """A list of file names that takes a few bytes each: in order they repeat their beginnings."""

    BLOCK = 128

    def __init__(self) -> None:
        self._blocks: list[bytes] = []
        self._open: list[str] = []
        self._count = 0
        self._last: tuple[int, list[str]] = (-1, [])

    def add(self, name: str) -> None:
        self._open.append(name)
        self._count += 1
        if len(self._open) == self.BLOCK:
            self.close()

    def close(self) -> None:
        if self._open:
            data = _BETWEEN.join(self._open).encode("utf-8", "surrogateescape")
            self._blocks.append(zlib.compress(data))
            self._open = []

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> str:
        block, place = divmod(index, self.BLOCK)
        last = self._last  # one attribute, read once: threads may share the object
        if last[0] != block:
            data = zlib.decompress(self._blocks[block]).decode("utf-8", "surrogateescape")
            last = self._last = (block, data.split(_BETWEEN))
        return last[1][place]
