"""Codebook indices of pictures, encoded once before training: what `oculi data codes` writes.

    oculi-codes.json   the codebook they are of, the size of the grid, sums of the arrays; written last
    keys.npy           [pictures] uint64, ascending: a hash of the pixels that the encoder reads
    indices.npy        [pictures, h, w] int32

A picture is found by its pixels, so whatever has changed it (a crop, another file of its name) is not
taken for what it was: it is encoded when it is drawn.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oculi import durable
from oculi.cognition.codebook import Codebook
from oculi.cognition.form import Ints
from oculi.errors import DataError

CODES: Final = "oculi-codes.json"
_MARK: Final = "codebook.txt"
_PART: Final = 1024  # pictures of a piece of work, kept as a file that appears whole
Progress = Callable[[int, int], None]


class IndexCache:
    """Indices by picture, mapped from a folder.

    Args:
        folder: what ``write_codes`` has written. codebook: whose indices they are to be.

    Raises:
        DataError: there is none, it is damaged, or of another codebook or size.
    """

    def __init__(self, folder: Path, codebook: Codebook) -> None:
        self.folder, self.codebook = folder, codebook
        try:
            said = json.loads((folder / CODES).read_text(encoding="utf-8"))
            known, sums = str(said["codebook"]), dict(said["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(
                f"{folder} holds no codebook indices; make them with: oculi data codes"
            ) from None
        if known != codebook.fingerprint:
            raise DataError(
                f"{folder} holds indices of another codebook, size or range of pixels than "
                f"{codebook.name}; make them anew with: oculi data codes"
            )
        self.keys = self._array("keys", np.uint64, sums)
        self.indices = self._array("indices", np.int32, sums)
        shape = (len(self.keys), codebook.rows, codebook.columns)
        if self.indices.shape != shape:
            raise self._damaged("indices.npy is an array of another shape")

    def find(self, picture: Image.Image) -> Ints | None:
        """Indices of a picture, [h, w] int64; None for one that was not encoded."""
        key = picture_key(self.codebook.pixels(picture))
        place = int(np.searchsorted(self.keys, key))
        if place == len(self.keys) or self.keys[place] != key:
            return None
        return self.indices[place].astype(np.int64)

    def _array(self, name: str, dtype: Any, sums: dict[str, str]) -> NDArray[Any]:
        file = self.folder / f"{name}.npy"
        try:
            if _sum(file) != sums.get(name):
                raise self._damaged(f"{file.name} is not what was written")
            array: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            raise self._damaged(f"{file.name} cannot be read") from None
        if array.dtype != dtype:
            raise self._damaged(f"{file.name} is an array of another kind")
        return array

    def _damaged(self, what: str) -> DataError:
        return DataError(f"{self.folder}: is damaged: {what}; make it anew with: oculi data codes")


def picture_key(pixels_SS3: NDArray[np.uint8]) -> np.uint64:
    """A hash of what the encoder reads of a picture."""
    digest = hashlib.blake2b(np.ascontiguousarray(pixels_SS3).tobytes(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest))


def write_codes(
    pictures: Iterable[Callable[[], Image.Image]],
    total: int,
    codebook: Codebook,
    folder: Path,
    *,
    data: str = "",
    batch: int = 32,
    device: str = "cpu",
    on_progress: Progress | None = None,
) -> tuple[int, list[str]]:
    """Encode pictures into a folder; one that was killed goes on with the pieces that are missing.

    Args:
        pictures: each loads one, in an order that is the same every time. total: how many there are.
        data: says which pictures they are: what was begun with others is not gone on with.
        batch: pictures encoded at once. device: where.

    Returns:
        the number of different pictures, and what is wrong with those that cannot be read.

    Raises:
        DataError: the folder holds something else. CheckpointError: the encoder cannot be loaded.
    """
    parts, bad = folder / "parts", list[str]()
    _begin(folder, f"{codebook.fingerprint} {data}")
    made: list[Path] = []
    for number, piece in enumerate(_pieces(pictures)):
        file = parts / f"{number:08}.npz"
        if not file.exists():
            _encode(piece, file, codebook, batch, device)
        made.append(file)
        if on_progress:
            on_progress(min(total, (number + 1) * _PART), total)
    keys, indices = [], []
    for file in made:
        with np.load(file, allow_pickle=False) as held:
            keys.append(held["keys"])
            indices.append(held["indices"])
            bad += [str(line) for line in held["bad"]]
    shape = (0, codebook.rows, codebook.columns)
    all_keys = np.concatenate([np.zeros(0, np.uint64), *keys])
    unique, first = np.unique(all_keys, return_index=True)
    found = np.concatenate([np.zeros(shape, np.int32), *indices])[first]
    for name, array in (("keys", unique), ("indices", found)):
        with (folder / f"{name}.npy").open("wb") as out:
            np.save(out, array)
    sums = {name: _sum(folder / f"{name}.npy") for name in ("keys", "indices")}
    told = {"codebook": codebook.fingerprint, "vq": codebook.name, "sha256": sums}
    durable.write_text(folder / CODES, json.dumps(told, indent=1))
    for file in made:
        file.unlink()
    (parts / _MARK).unlink()
    parts.rmdir()
    return len(unique), bad


def _begin(folder: Path, what: str) -> None:
    """The folder for the pieces of one codebook and data; raises DataError."""
    mark = folder / "parts" / _MARK
    if (folder / CODES).exists():
        raise DataError(f"{folder} holds codebook indices already; choose another folder")
    if mark.exists() and mark.read_text(encoding="utf-8") != what:
        raise DataError(f"{folder} was begun with another codebook or data; choose another folder")
    mark.parent.mkdir(parents=True, exist_ok=True)
    durable.write_text(mark, what)


def _pieces(
    pictures: Iterable[Callable[[], Image.Image]],
) -> Iterator[list[Callable[[], Image.Image]]]:
    each = iter(pictures)
    while piece := list(islice(each, _PART)):
        yield piece


def _encode(
    piece: list[Callable[[], Image.Image]],
    file: Path,
    codebook: Codebook,
    batch: int,
    device: str,
) -> None:
    """One piece of work as a file that is there in full or not at all."""
    read, bad = [], []
    for load in piece:
        try:
            read.append(codebook.pixels(load()))
        except DataError as error:
            bad.append(str(error))
    keys = np.array([picture_key(pixels) for pixels in read], np.uint64)
    found = [np.zeros((0, codebook.rows, codebook.columns), np.int64)]
    found += [
        codebook.encode(np.stack(read[i : i + batch]), device) for i in range(0, len(read), batch)
    ]
    partial = file.with_suffix(".partial")
    with partial.open("wb") as out:
        np.savez(
            out, keys=keys, indices=np.concatenate(found).astype(np.int32), bad=np.array(bad, str)
        )
    partial.replace(file)


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
