"""Which container a file is, and which files a path, a pattern or a folder means."""

from __future__ import annotations

import glob
import itertools
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from oculi.data.arrowrows import ArrowRows
from oculi.data.container import Container
from oculi.data.csvrows import CsvRows
from oculi.data.folder import FolderRows
from oculi.data.grouped import PICTURES, TEXTS
from oculi.data.jsonrows import JsonRows
from oculi.data.parquetrows import ParquetRows
from oculi.data.tarrows import TarRows
from oculi.errors import DataError


@dataclass(frozen=True, slots=True)
class Kind:
    """A container, and how it is recognised: by its first bytes, else by the file's suffix."""

    open: Callable[[Path], Container]
    suffixes: tuple[str, ...]
    magic: Callable[[bytes], bool]


def _begins(*magic: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(magic)


KINDS: Final = (
    Kind(ParquetRows, (".parquet",), _begins(b"PAR1")),
    Kind(ArrowRows, (".arrow", ".feather"), _begins(b"ARROW1", b"\xff\xff\xff\xff")),
    Kind(TarRows, (".tar",), lambda head: head[257:262] == b"ustar"),
    Kind(CsvRows, (".csv", ".tsv"), lambda head: False),
    Kind(JsonRows, (".jsonl", ".json", ".ndjson"), lambda head: False),
)
_PACKED: Final = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf": "7z",
}
# What `oculi data prepare` writes last, and what it writes first.
PREPARED: Final = "oculi-prepared.json"
PREPARING: Final = "oculi-preparing.json"
_PATTERN: Final = re.compile(r"[*?[]")
_METADATA: Final = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
# Files of these kinds are rows whatever lies beside them; JSON may only describe them.
_SURE: Final = KINDS[:3]


def open_container(path: Path) -> Container:
    """The container of a file or of a folder of pictures; raises DataError."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            return FolderRows(path)
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path}: is not a regular file")
        with path.open("rb") as file:
            head = file.read(512)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {_reason(error)}") from None
    for magic, name in _PACKED.items():
        if head.startswith(magic):
            raise DataError(f"{path}: is compressed ({name}); unpack it and give what is inside")
    suffix = path.suffix.lower()
    for kind in KINDS:
        if kind.magic(head):
            return kind.open(path)
    kind = next((kind for kind in KINDS if suffix in kind.suffixes), KINDS[-1])
    return kind.open(path)


def is_prepared(path: Path) -> bool:
    """Whether a path is a folder that `oculi data prepare` has written to its end."""
    return (path / PREPARED).is_file()


def is_data(path: Path) -> bool:
    """Whether data may be read from a path: a file or folder that is there, or a pattern that matches.

    For where a name of something else may stand too. What is wrong with it `find_files` says.
    """
    if path == Path():  # an empty name
        return False
    if path.exists():
        return True
    return bool(_PATTERN.search(str(path))) and any(glob.iglob(str(path), recursive=True))


def find_files(path: Path) -> list[Path]:
    """The files that a path means, sorted by name; a folder of pictures is one of them itself.

    A pattern (`*`, `?`, `[`, `**`) means the files that match. A folder means its metadata file
    (`metadata.jsonl`, `.csv` or `.parquet`), else its shards of one kind, else its pictures.
    Raises DataError when there is nothing of the kind, or more than one.
    """
    try:
        if path.is_dir():
            return _in_folder(path)
        if path.exists() or not _PATTERN.search(str(path)):
            return [path]
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {_reason(error)}") from None
    files = [each for each in found if each.is_file()]
    if not files:
        raise DataError(f"{path}: no file matches")
    return files


def _in_folder(folder: Path) -> list[Path]:
    if is_prepared(folder):
        raise DataError(f"{folder}: is prepared data; give the files that it was made from")
    if (folder / PREPARING).is_file():
        raise DataError(f"{folder}: is being prepared; the same command again goes on with it")
    files = sorted(each for each in folder.iterdir() if not each.name.startswith("."))
    described = [each for each in files if each.name in _METADATA]
    if len(described) > 1:
        names = " and ".join(each.name for each in described)
        raise DataError(f"{folder}: holds {names}; name the one to read")
    if described:
        return described
    shards = {kind: _of_kind(files, kind) for kind in KINDS}
    chosen = [kind for kind in _SURE if shards[kind]]
    if not chosen:
        below = next(filter(_leads_to_shards, files), None)
        if below is not None:
            raise DataError(f"{folder}: the data files lie below; give a folder such as {below}")
        if _has_captions(files):
            return [folder]
        chosen = [kind for kind in KINDS if shards[kind]]
    if len(chosen) > 1:
        names = " and ".join(shards[kind][0].name for kind in chosen)
        raise DataError(f"{folder}: holds several kinds of files, as {names}; give a pattern")
    return shards[chosen[0]] if chosen else [folder]


def _leads_to_shards(below: Path) -> bool:
    """Whether a folder holds shards, by the first of its files: it may hold thousands."""
    if not below.is_dir():
        return False
    files = list(itertools.islice(below.iterdir(), 100))
    return any(_of_kind(files, kind) for kind in _SURE)


def _of_kind(files: list[Path], kind: Kind) -> list[Path]:
    return [each for each in files if each.suffix.lower() in kind.suffixes and each.is_file()]


def _has_captions(files: list[Path]) -> bool:
    """Whether a picture has a text or JSON of its name beside it."""
    pictures = {each.stem for each in files if _suffix(each) in PICTURES}
    return any(each.stem in pictures for each in files if _suffix(each) in TEXTS | {"json"})


def _suffix(path: Path) -> str:
    return path.suffix[1:].lower()


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, OSError):
        return error.strerror or "cannot be read"
    return "has a NUL character in its name"
