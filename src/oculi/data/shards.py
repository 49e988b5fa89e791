"""Rows of several files as samples, read again at every access."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from oculi.data.container import Container, Row, RowRef
from oculi.data.forms import Form
from oculi.data.phrasings import Phrasings
from oculi.data.rows import build_sample
from oculi.data.sample import RowError, Sample

# Offset, length and line of every row: `RowRef`s as 16 bytes each.
Places = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]


class Shard:
    """The good rows of one file: three numbers each, and the container to read them from.

    `asked` None: the keys of each row tell its form.
    """

    def __init__(
        self, container: Container, root: Path, asked: Form | None, places: Places
    ) -> None:
        self.container, self.root, self.asked = container, root, asked
        self._offsets, self._lengths, self._lines = places

    def __len__(self) -> int:
        return len(self._offsets)

    def ref(self, index: int) -> RowRef:
        """Where a row lies."""
        return RowRef(int(self._offsets[index]), int(self._lengths[index]), int(self._lines[index]))

    def sample(self, index: int) -> Sample:
        """Read a row; raises RowError with its place, and DataError when the file is not as it was."""
        ref, path = self.ref(index), self.container.path
        try:
            return build_sample(self.container.read(ref), self.asked, path, ref.line, self.root)
        except RowError as error:
            raise RowError(error.reason, error.id, f"{path}:{ref.line}") from None


AnyShard = TypeVar("AnyShard", bound=Shard)


class ShardedRows(Generic[AnyShard]):
    """The rows of several shards by one number.

    Reads take no shared file position, so one object serves threads and forked workers; it can be
    pickled. Captions are given questions by `phrasings`, if there are any.
    """

    def __init__(
        self,
        path: Path,
        shards: Sequence[AnyShard],
        *,
        for_training: bool = True,
        phrasings: Phrasings | None = None,
    ) -> None:
        self.path, self.phrasings = path, phrasings
        self._for_training = for_training
        self._shards = list(shards)
        self._ends = list(itertools.accumulate(map(len, self._shards)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        shard, own = self._find(index)
        sample = shard.sample(own)
        sample.validate(for_training=self._for_training)
        return sample if self.phrasings is None else self.phrasings(sample)

    def row(self, index: int) -> Row:
        """A row as it lies there; raises RowError and DataError when it is not as it was."""
        shard, own = self._find(index)
        return shard.container.read(shard.ref(own))

    def _find(self, index: int) -> tuple[AnyShard, int]:
        """The shard of a row, and its number there."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} good rows; there is no row {index}")
        index %= len(self)
        which = bisect_right(self._ends, index)
        return self._shards[which], index - (self._ends[which - 1] if which else 0)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def close(self) -> None:
        """Close the files; the next access opens them again."""
        for shard in self._shards:
            shard.container.close()
