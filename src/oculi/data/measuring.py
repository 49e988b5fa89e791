"""What the workers of `oculi data prepare` do: find the rows of a file, measure a part of them.

Each piece of work is a function of the plan alone and is kept as one file that appears whole: a
preparation that was killed goes on with the pieces that are missing, and how many workers did it
cannot be seen. Rows are found by `FileScan` and read by `Shard`, as training does.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from oculi.data.formats import BadRow, FileScan, NoRows, collect
from oculi.data.forms import find_form
from oculi.data.images import ImageError
from oculi.data.prepared import NUMBER, PLACE, ROW, SIZE, Plan, columns
from oculi.data.sample import ImageRef, ImageSource, RowError, Sample
from oculi.data.shards import Shard
from oculi.data.source import pieces, sizes
from oculi.errors import DataError

if TYPE_CHECKING:
    from oculi.model import OculiProcessor

PART_ROWS = 4096
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, BadZipFile)


@dataclass(frozen=True, slots=True)
class Part:
    """Rows `start` to `stop` of the good ones of file number `file`."""

    file: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of a part's rows; R rows, I images of the good ones among them.

    Attributes:
        tokens_R: int32, -1 where the row is bad. image_counts_R: int32.
        contents_R: uint64, a hash of all that is said and shown.
        image_sizes_I: SIZE.
        bad_rows: the bad ones, in order.
    """

    tokens_R: NDArray[np.int32]
    image_counts_R: NDArray[np.int32]
    contents_R: NDArray[np.uint64]
    image_sizes_I: NDArray[Any]
    bad_rows: list[BadRow]


@dataclass(frozen=True)
class Job:
    """The work and the folder for its pieces."""

    plan: Plan
    folder: Path
    processor: OculiProcessor

    @cached_property
    def _open(self) -> dict[int, Shard]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_open"}

    # Finding rows

    def scan(self, number: int) -> None:
        """Find the rows of one file.

        Raises:
            DataError: it cannot be read or has changed. Without a good row it is only reported.
        """
        file, plan = self.plan.files[number], self.plan
        file.open().close()  # looks whether it is still the same
        rows = FileScan(Path(file.path), Path(file.root), form=plan.form, tag=plan.tag)
        bad: list[BadRow] = []
        table = np.empty(0, ROW)
        try:
            places = collect(rows, bad)
            table = np.empty(len(places[0]), ROW)
            for name, column in zip(PLACE, places, strict=True):
                table[name] = column
        except NoRows as error:
            if not bad:
                bad = [BadRow("", 0, str(error).removeprefix(f"{file.path}: "), file.path)]
        write(self._rows(number), lambda out: np.save(out, table))
        said = json.dumps([asdict(row) for row in bad]).encode()
        write(self._bad(number), lambda out: out.write(said))

    def scanned(self, number: int) -> tuple[NDArray[Any], list[BadRow]] | None:
        """Places, [rows] ROW, and the bad rows of a file; None when it is still to be read."""
        try:
            bad = [BadRow(**row) for row in json.loads(self._bad(number).read_bytes())]
            table: NDArray[Any] = np.load(self._rows(number), mmap_mode="r", allow_pickle=False)
        except (*_UNREADABLE, TypeError):
            return None
        return (table, bad) if table.dtype == ROW else None

    # Measuring them

    def measure(self, part: Part) -> None:
        """Measure a part; raises DataError when the file cannot be read or has changed."""
        shard, bad = self._shard(part.file), []
        count = part.stop - part.start
        tokens, images = np.full(count, -1, NUMBER), np.zeros(count, NUMBER)
        hashes = np.zeros(count, np.uint64)
        seen: list[tuple[int, int]] = []
        for i in range(count):
            found = self._length(shard, part.start + i)
            if isinstance(found, BadRow):
                bad.append(found)
                continue
            tokens[i], own, hashes[i] = found
            images[i] = len(own)
            seen += own
        said = np.array(json.dumps([asdict(row) for row in bad]))
        sizes_I = np.array(seen, SIZE)
        write(
            self._part(part),
            lambda out: np.savez(
                out, tokens=tokens, image_counts=images, contents=hashes, image_sizes=sizes_I,
                bad=said,
            ),
        )  # fmt: skip

    def measured(self, part: Part) -> Measured | None:
        """A part's piece of work; None when it is still to be done."""
        try:
            with np.load(self._part(part), allow_pickle=False) as file:
                bad = [BadRow(**row) for row in json.loads(str(file["bad"]))]
                found = Measured(
                    file["tokens"], file["image_counts"], file["contents"], file["image_sizes"], bad
                )
        except (*_UNREADABLE, TypeError):
            return None
        whole = len(found.tokens_R) == len(found.image_counts_R) == part.stop - part.start
        return found if whole and found.image_sizes_I.dtype == SIZE else None

    def _length(self, shard: Shard, index: int) -> tuple[int, list[tuple[int, int]], int] | BadRow:
        """Tokens, sizes of the images and hash of one row, or what is wrong with it."""
        id, line, path = "", shard.ref(index).line, str(shard.container.path)
        phrase = self.plan.phrase()
        try:
            sample = shard.sample(index)
            id = sample.id
            images = sizes(sample.images)
            learnt = sample if phrase is None else phrase(sample)
            tokens = self.processor.length(pieces(learnt.messages, images))
        except RowError as error:
            return BadRow(error.id or id, line, error.reason, path)
        except (ImageError, self.processor.EncodingError) as error:
            return BadRow(id, line, str(error), path)
        if small := _small(images, self.plan.min_edge):
            return BadRow(id, line, small, path)
        most = self.plan.max_length
        if most is not None and tokens > most:
            return BadRow(id, line, f"has {tokens} tokens, more than {most}", path)
        return tokens, images, _contents(sample)

    def _shard(self, number: int) -> Shard:
        if number not in self._open:
            for old in self._open.values():
                old.container.close()
            self._open.clear()
            scanned = self.scanned(number)
            if scanned is None:
                raise DataError(f"{self._rows(number)}: is gone; run the same command again")
            file, form = self.plan.files[number], self.plan.form
            asked = None if form is None else find_form(form)
            self._open[number] = Shard(file.open(), Path(file.root), asked, columns(scanned[0]))
        return self._open[number]

    def _rows(self, number: int) -> Path:
        return self.folder / f"{number:05}-rows.npy"

    def _bad(self, number: int) -> Path:
        return self.folder / f"{number:05}-bad.json"

    def _part(self, part: Part) -> Path:
        return self.folder / f"{part.file:05}-{part.start:012}.npz"


def write(file: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Write a file that is there in full or not at all, whoever else writes the same one."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    with partial.open("wb") as out:
        fill(out)
    partial.replace(file)


def _small(sizes: Sequence[tuple[int, int]], least: int | None) -> str:
    """What is wrong with the first picture whose longer edge is under the least; empty if none is."""
    for width, height in sizes:
        if least is not None and max(width, height) < least:
            return f"has a picture of {width} x {height} pixels, its longer edge under {least}"
    return ""


def _contents(sample: Sample) -> int:
    """A hash of what a sample says and shows; a picture is the file it lies in, or its bytes."""
    seen = hashlib.blake2b(digest_size=8)
    said = [(message.role, message.content) for message in sample.messages]
    seen.update(repr(said).encode("utf-8", "surrogatepass"))
    for image in sample.images:
        seen.update(_picture(image))
    return int.from_bytes(seen.digest())


def _picture(image: ImageSource) -> bytes:
    if isinstance(image, ImageRef) and image.data is not None:
        return hashlib.blake2b(image.data).digest()
    if isinstance(image, ImageRef) and image.path is not None:
        return repr((os.path.join(image.root or "", image.path), image.span)).encode()
    return repr(image).encode()
