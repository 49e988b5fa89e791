"""Read conversations with pictures from the files that people have.

A file is a container (JSON, CSV, Parquet, Arrow, an archive, a folder of pictures) of rows, and a
row has a form (LLaVA, messages, ...); `oculi.data.kinds` and `oculi.data.forms` list them, and any
form may lie in any container. A bad row is reported with its line and its reason and left out; it
never ends the reading.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from oculi.data.container import Container, Found, RowRef
from oculi.data.forms import FORMS, KNOWN, Form, find_form, recognise
from oculi.data.kinds import find_files, open_container
from oculi.data.phrasings import Phrasings
from oculi.data.rows import build_sample, has_tag, parse_row, row_id
from oculi.data.sample import RowError, Sample
from oculi.data.shards import Places, Shard, ShardedRows
from oculi.errors import DataError, nearest, shown

__all__ = ["BadRow", "FileScan", "FileSource", "RowRef", "parse_row", "scan"]

_MAX_TAGS = 1000


class NoRows(DataError):
    """A file without a row that can be used."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used. `id` is empty and `line` 0 where there is none to name.

    `line` counts lines in text files and rows in others, from 1.
    """

    id: str
    line: int
    reason: str
    file: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {f'row {shown(self.id)}: ' if self.id else ''}{self.reason}"


class FileScan:
    """One pass over a data file: every row as (RowRef, Sample) or BadRow, in file order.

    No image is opened. `form` names the format of the rows so far, `duplicates` counts ids seen
    before, `done` is how far the reading is out of `size`. Making one raises DataError when the
    file cannot be had; iterating raises it when the file cannot be read, and NoRows at its end when
    no row had the keys of a known format.

    Args:
        path: one file, or a folder of pictures; see `oculi.data.kinds.find_files` for patterns.
        image_root: where image paths start; None: the file's folder.
        form: the name of the rows' format; None: their keys tell.
        tag: only rows of this stage tag, and those without any; None: all.
        for_training: whether a row must end with an answer.
    """

    def __init__(
        self,
        path: Path,
        image_root: Path | None = None,
        *,
        form: str | None = None,
        tag: str | None = None,
        for_training: bool = True,
    ) -> None:
        self.path = Path(path)
        self.container: Container = open_container(self.path)
        self.root = default_root(self.path) if image_root is None else Path(image_root)
        self.asked = find_form(form) if form is not None else None
        self.tag, self.for_training = tag, for_training
        self.tags: set[str] = set()
        self._first: Form | None = None  # of the first row that is of any, good or bad
        self._seen: Form | None = None  # of the good rows, the one that says most
        self._left_out = False
        self._ids = array("q")

    @property
    def form(self) -> str | None:
        """The format asked for, or the one that says most of those recognised."""
        form = self._seen or self._first
        return None if form is None else (self.asked or form).name

    @property
    def duplicates(self) -> int:
        """Ids that occurred before; counted by hash, so a collision costs one count."""
        if not self._ids:
            return 0
        ids = np.frombuffer(self._ids, dtype=np.int64)
        ids.sort()  # in place: tens of millions of them are not copied
        return int(np.count_nonzero(ids[1:] == ids[:-1]))

    @property
    def done(self) -> int:
        return min(self.container.done, self.size)

    @property
    def size(self) -> int:
        return self.container.size

    def __iter__(self) -> Iterator[tuple[RowRef, Sample] | BadRow]:
        first = ""
        for row in self.container.rows():
            found = self._read(row)
            if isinstance(found, BadRow):
                place = f"{self.container.unit} {found.line}: " if found.line else ""
                first = first or f"{place}{found.reason}"
            if found is not None:
                yield found
        if self._first is None and not self._left_out:
            what = f"no row can be used; the first: {first}" if first else "the file has no rows"
            raise NoRows(f"{self.path}: {what if KNOWN in what else f'{what}; {KNOWN}'}")

    def _read(self, row: Found) -> tuple[RowRef, Sample] | BadRow | None:
        """The sample of a row, what is wrong with it, or None where the tag leaves it out."""
        id = row.id
        try:
            if row.row is None:
                raise RowError(row.problem, row.id)
            id = row_id(row.row, id)
            if self.tag is not None:
                wanted, tags = has_tag(row.row, self.tag)
                if len(self.tags) < _MAX_TAGS:
                    self.tags.update(tags)
                if not wanted:
                    self._left_out = True
                    return None
            form = self.asked or recognise(row.row)
            self._first = self._first or form
            self._agree(form)
            sample = build_sample(row.row, form, self.path, row.ref.line, self.root)
            sample.validate(for_training=self.for_training)
            self._remember(form)
        except RowError as error:
            return BadRow(error.id or id, row.ref.line, error.reason, str(self.path))
        self._ids.append(hash(sample.id))
        return row.ref, sample

    def _agree(self, form: Form) -> None:
        """Refuse a row of another family than the good rows before."""
        if self._seen is not None and form.family != self._seen.family:
            raise RowError(f"a row of the format {form.name} among rows of {self._seen.name}")

    def _remember(self, form: Form) -> None:
        """The form of those rows that says most; a bad one tells nothing of what the others are."""
        if self._seen is None or FORMS.index(form) < FORMS.index(self._seen):
            self._seen = form


def default_root(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def scan(
    path: Path, image_root: Path | None = None, *, for_training: bool = True
) -> Iterator[RowRef | BadRow]:
    """Yield the place of every good row and every bad row of a file, in file order.

    Raises DataError as `FileScan` does.
    """
    for found in FileScan(path, image_root, for_training=for_training):
        yield found if isinstance(found, BadRow) else found[0]


def collect(rows: FileScan, bad_rows: list[BadRow], limit: int | None = None) -> Places:
    """The places of the first `limit` good rows of a file; bad ones among them go to `bad_rows`."""
    offsets, lengths, lines = array("q"), array("i"), array("i")
    for found in rows:
        if isinstance(found, BadRow):
            bad_rows.append(found)
            continue
        ref = found[0]
        offsets.append(ref.offset)
        lengths.append(ref.length)
        lines.append(ref.line)
        if len(offsets) == limit:
            break
    # One by one: together with the growing arrays they would take twice the memory.
    offsets_n = np.array(offsets, dtype=np.int64)
    del offsets
    lengths_n = np.array(lengths, dtype=np.int32)
    del lengths
    return offsets_n, lengths_n, np.array(lines, dtype=np.int32)


class _Scanned(Shard):
    """The good rows of one file as a pass over it has found them."""

    def __init__(self, rows: FileScan, bad_rows: list[BadRow], limit: int | None) -> None:
        places = collect(rows, bad_rows, limit)
        super().__init__(rows.container, rows.root, rows.asked, places)
        self.form, self.tags, self.duplicates = rows.form, rows.tags, rows.duplicates


class FileSource(ShardedRows[_Scanned]):
    """The good rows of data files as samples, read again at every access.

    Only offset, length and line of each row are held (16 bytes a row). Reads take no shared
    file position, so one object serves threads and forked workers; it can be pickled.
    Raises DataError when a file cannot be read, is of no known format, or was changed since.

    Args:
        path: a file, a pattern for several, or a folder.
        image_root, form, tag, for_training: as for `FileScan`.
        limit: only the first so many good rows; what comes after them is not read at all.
        phrasings: questions for captions.
    """

    def __init__(
        self,
        path: Path,
        image_root: Path | None = None,
        *,
        form: str | None = None,
        tag: str | None = None,
        limit: int | None = None,
        for_training: bool = True,
        phrasings: Phrasings | None = None,
    ) -> None:
        self.bad_rows: list[BadRow] = []
        shards: list[_Scanned] = []
        left = limit
        for file in find_files(Path(path)):
            rows = FileScan(file, image_root, form=form, tag=tag, for_training=for_training)
            shards.append(_Scanned(rows, self.bad_rows, left))
            left = None if left is None else left - len(shards[-1])
            if left == 0:
                break
        super().__init__(Path(path), shards, for_training=for_training, phrasings=phrasings)
        self._check_tag(tag)
        # Not None: lengths were kept without it.
        asked = [[*phrasings.texts, phrasings.seed]] if phrasings else []
        self._rules = [form, tag, limit, *asked]

    @property
    def form(self) -> str:
        """The format of the rows; of several files, each format once."""
        return ", ".join(sorted({shard.form for shard in self._shards if shard.form}))

    @property
    def root(self) -> Path:
        """Where the image paths of the first file start."""
        return self._shards[0].root

    @property
    def files(self) -> list[Path]:
        """The files that were read, or the folder of pictures."""
        return [shard.container.path for shard in self._shards]

    @property
    def duplicates(self) -> int:
        return sum(shard.duplicates for shard in self._shards)

    @property
    def fingerprint(self) -> list[object]:
        """Plain values that are the same only for the same rows of the same, unchanged files."""
        files = [[str(s.container.path.resolve()), *s.container.stamp] for s in self._shards]
        return [files, str(self.root.resolve()), *self._rules]

    def _check_tag(self, tag: str | None) -> None:
        tags = set().union(*(shard.tags for shard in self._shards))
        if tag is not None and tags and tag not in tags and not len(self):
            known = ", ".join(sorted(map(shown, tags))[:12])
            raise DataError(
                f"{self.path}: no row has the stage tag {shown(tag)}; the tags are {known}"
                f"{nearest(tag, tags)}"
            )
