"""A folder that `oculi data prepare` has written: where every good row lies, and how long it is.

    oculi-prepared.json   what it was made from, and sums of the arrays; written last
    rows.npy              [rows] offset int64, length int32, line int32
    tokens.npy            [rows] int32, for one processor
    image_counts.npy      [rows] int32
    image_sizes.npy       [images] width and height in pixels, int32
    quarantine.jsonl      the bad rows
    report.md, report.json

Rows are mapped, so a process holds 16 bytes of each at most and shares them with its workers. The
folder is input like any other: sums and bounds are checked before a row is read by it.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from oculi.data.container import Container
from oculi.data.forms import find_form
from oculi.data.kinds import PREPARED, open_container
from oculi.data.phrasings import Phrasings
from oculi.data.shards import Places, Shard, ShardedRows
from oculi.errors import DataError
from oculi.specs.base import Strict

ROW: Final = np.dtype([("offset", "<i8"), ("length", "<i4"), ("line", "<i4")])
PLACE: Final = ("offset", "length", "line")
SIZE: Final = np.dtype([("width", "<i4"), ("height", "<i4")])
NUMBER: Final = np.dtype("<i4")
ARRAYS: Final[dict[str, np.dtype[Any]]] = {
    "rows": ROW,
    "tokens": NUMBER,
    "image_counts": NUMBER,
    "image_sizes": SIZE,
}
_EDGE: Final = 2**16
_MAX_MANIFEST: Final = 2**28  # tens of thousands of shards take some megabytes


class SourceFile(Strict):
    """A data file as it was; another size, time or edge is another file."""

    path: str
    root: str = Field(description="where its image paths start")
    container: str
    size: int
    changed: int
    edges: str = Field(description="SHA-256 of the first and last 64 KiB; of a folder: empty")

    @classmethod
    def of(cls, container: Container, root: Path) -> SourceFile:
        size, changed = container.stamp
        return cls(
            path=os.path.abspath(container.path),
            root=os.path.abspath(root),
            container=container.kind,
            size=size,
            changed=changed,
            edges=_edges(container.path),
        )

    def open(self) -> Container:
        """The file, ready to be read at random; raises DataError when it is not as it was."""
        container = open_container(Path(self.path))
        if SourceFile.of(container, Path(self.root)) != self:
            raise DataError(f"{self.path}: changed since it was prepared")
        container.prime()
        return container


class Plan(Strict):
    """All that the result depends on."""

    version: Literal[1] = 1
    form: str | None
    tag: str | None
    image_root: str | None
    max_length: int | None
    min_edge: int | None = None
    phrasings: tuple[str, ...] | None = Field(None, min_length=1, description="for captions")
    phrasings_seed: int = 0
    processor: str
    files: tuple[SourceFile, ...] = Field(min_length=1)

    def phrase(self) -> Phrasings | None:
        """What gives captions their questions."""
        return None if self.phrasings is None else Phrasings(self.phrasings, self.phrasings_seed)


class Array(Strict):
    """What an array's file must be."""

    length: int = Field(ge=0)
    sha256: str


class Manifest(Strict):
    """The contents of `oculi-prepared.json`; `rows` counts the good rows of each file."""

    plan: Plan
    rows: tuple[int, ...]
    arrays: dict[str, Array]


class PreparedRows(ShardedRows[Shard]):
    """The good rows of a prepared folder as samples, without a pass over the files.

    Args:
        folder: what `oculi data prepare` has written.
        limit: only the first so many rows.

    Raises:
        DataError: the folder is cut or damaged, or a file has changed since.
    """

    def __init__(self, folder: Path, *, limit: int | None = None) -> None:
        self.manifest = read_manifest(folder)
        rows = load_array(folder, "rows", self.manifest)
        if sum(self.manifest.rows) != len(rows) or min(self.manifest.rows) < 0:
            raise damaged(folder, f"{PREPARED} counts other rows than there are")
        try:
            shards = open_shards(self.manifest.plan, self.manifest.rows, rows, limit)
        except IndexError as error:
            raise damaged(folder, str(error)) from None
        except DataError as error:
            raise DataError(f"{error}; prepare again, {folder} was made from it") from None
        super().__init__(folder, shards, phrasings=self.manifest.plan.phrase())

    @property
    def settings(self) -> dict[str, str | None]:
        """What the rows were chosen and read by, as a source of a recipe calls it."""
        plan = self.manifest.plan
        return {"format": plan.form, "tag": plan.tag, "image_root": plan.image_root}

    def lengths(self, processor: str) -> NDArray[np.int32]:
        """Tokens of all rows, [len(self)] int32.

        Raises:
            DataError: they were measured for another processor than the one of this fingerprint, or
                the file is damaged.
        """
        if processor != self.manifest.plan.processor:
            # Measured again they would be right, but that takes what preparing was to save.
            raise DataError(
                f"{self.path}: was prepared for another tokenizer, chat template or image settings "
                "than this recipe's; prepare the data for this recipe into another folder"
            )
        return load_array(self.path, "tokens", self.manifest)[: len(self)]


def open_prepared(
    folder: Path,
    limit: int | None = None,
    phrasings: Phrasings | None = None,
    **asked: str | None,
) -> PreparedRows:
    """A prepared folder as a recipe asks for it: what else is asked for must be the folder's own
    `phrasings`, `format`, `tag` and `image_root`; what is not asked for is as in the folder.

    Raises:
        DataError: as `PreparedRows`, or a setting is another one.
    """
    rows = PreparedRows(folder, limit=limit)
    if phrasings not in (None, rows.phrasings):
        raise DataError(
            f"{folder}: was prepared with other phrasings or another phrasings_seed, or with none; "
            "leave them out, or prepare again with --phrasings"
        )
    for name, value in asked.items():
        made = rows.settings[name]
        same = value == made or (name == "image_root" and value and os.path.abspath(value) == made)
        if value is not None and not same:
            raise DataError(
                f"{folder}: was prepared with {name} {made or 'not set'}, but {value} is asked for; "
                f"leave {name} out, or prepare again"
            )
    return rows


def read_manifest(folder: Path) -> Manifest:
    """What a prepared folder says of itself; raises DataError."""
    file = folder / PREPARED
    try:
        if file.stat().st_size > _MAX_MANIFEST:
            raise damaged(folder, f"{PREPARED} is too long")
        manifest = Manifest.model_validate_json(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or 'cannot be read'}") from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or PREPARED
        raise damaged(folder, f"{where}: {problem['msg']}") from None
    if set(manifest.arrays) != set(ARRAYS) or len(manifest.rows) != len(manifest.plan.files):
        raise damaged(folder, f"{PREPARED} is not whole")
    return manifest


def load_array(folder: Path, name: str, manifest: Manifest) -> NDArray[Any]:
    """One of the folder's arrays, mapped; raises DataError when it is not what was written."""
    file, wanted = folder / f"{name}.npy", manifest.arrays[name]
    try:
        if file_sum(file) != wanted.sha256:
            raise damaged(folder, f"{file.name} is not what was written")
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or 'cannot be read'}") from None
    except (ValueError, EOFError):
        raise damaged(folder, f"{file.name} is no array") from None
    if array.dtype != ARRAYS[name] or array.shape != (wanted.length,):
        raise damaged(folder, f"{file.name} is an array of another kind")
    return array.view(np.ndarray)  # without memmap's own, slower way to a value


def open_shards(
    plan: Plan, counts: Sequence[int], rows: NDArray[Any], limit: int | None = None
) -> list[Shard]:
    """The files of a plan with their share of the rows, [sum(counts)] ROW.

    Raises:
        DataError: a file is not there or not as it was.
        IndexError: a row lies outside of its file.
    """
    form = None if plan.form is None else find_form(plan.form)
    ends = list(itertools.accumulate(counts))
    shards: list[Shard] = []
    for file, count, end in zip(plan.files, counts, ends, strict=True):
        if limit is not None and end - count >= limit:
            break
        own = rows[end - count : end if limit is None else min(end, limit)]
        container = file.open()
        _check_bounds(own, container)
        shards.append(Shard(container, Path(file.root), form, columns(own)))
    return shards


def _check_bounds(rows: NDArray[Any], container: Container) -> None:
    if not len(rows):
        return
    inside = rows["offset"].min() >= 0 and rows["offset"].max() < max(1, container.size)
    if not inside or rows["length"].min() < 0:
        raise IndexError(f"rows.npy names places outside of {container.path}")


def columns(rows: NDArray[Any]) -> Places:
    """Offset, length and line of rows, [n] ROW, as views."""
    return rows["offset"], rows["length"], rows["line"]


def damaged(folder: Path, what: str) -> DataError:
    return DataError(f"{folder}: is damaged: {what}; prepare the data again")


def file_sum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _edges(path: Path) -> str:
    if path.is_dir():
        return ""
    try:
        with path.open("rb") as file:
            seen = hashlib.sha256(file.read(_EDGE))
            file.seek(max(0, os.fstat(file.fileno()).st_size - _EDGE))
            seen.update(file.read(_EDGE))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or 'cannot be read'}") from None
    return seen.hexdigest()
