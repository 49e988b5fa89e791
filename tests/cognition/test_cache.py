"""Indices made before training: the same ones, resumable, refused where they are another's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers import Drawn
from oculi.cognition import cache
from oculi.cognition.cache import IndexCache, write_codes
from oculi.cognition.codebook import Codebook
from oculi.cognition.readers import CodeReader
from oculi.errors import DataError
from oculi.specs.cognition import CodesSpec

PICTURES = [Drawn(8, 8, n % 5) for n in range(7)]  # two come twice


@pytest.fixture
def book(vq_folder: Path) -> Codebook:
    return Codebook(str(vq_folder))


def loads(pictures: Any = PICTURES) -> list[Callable[[], Image.Image]]:
    return [picture.load for picture in pictures]


def test_what_was_encoded_is_found_and_nothing_else(book: Codebook, tmp_path: Path) -> None:
    assert write_codes(loads(), 7, book, tmp_path / "codes", batch=3) == (5, [])
    assert sorted(p.name for p in (tmp_path / "codes").iterdir()) == [
        "indices.npy", "keys.npy", "oculi-codes.json",
    ]  # fmt: skip
    held = IndexCache(tmp_path / "codes", book)
    for picture in PICTURES:
        found = held.find(picture.load())
        assert found is not None and np.array_equal(found, book.indices(picture.load()))
    assert held.find(Drawn(8, 8, 77).load()) is None


def test_a_reader_with_a_cache_answers_as_one_without(
    book: Codebook, vq_folder: Path, tmp_path: Path
) -> None:
    write_codes(loads(PICTURES[:2]), 2, book, tmp_path / "codes")
    plain = CodeReader(CodesSpec(vq=str(vq_folder)))
    quick = CodeReader(CodesSpec(vq=str(vq_folder), cache=str(tmp_path / "codes")))
    for picture in PICTURES:  # the others are encoded
        made = picture.load()
        assert np.array_equal(plain.values(made, (1, 1)), quick.values(made, (1, 1)))


def test_a_picture_that_cannot_be_read_is_named_and_left_out(
    book: Codebook, tmp_path: Path
) -> None:
    def broken() -> Image.Image:
        raise DataError("x.png: is cut off")

    made = write_codes([*loads(PICTURES[:1]), broken], 2, book, tmp_path / "codes")
    assert made == (1, ["x.png: is cut off"])


def test_what_was_killed_goes_on(
    book: Codebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_PART", 2)
    asked: list[int] = []

    def counted(stop: int) -> list[Callable[[], Image.Image]]:
        def load(n: int) -> Image.Image:
            if n == stop:
                raise KeyboardInterrupt
            asked.append(n)
            return PICTURES[n].load()

        return [lambda n=n: load(n) for n in range(7)]  # type: ignore[misc]

    with pytest.raises(KeyboardInterrupt):
        write_codes(counted(5), 7, book, tmp_path / "codes")
    with pytest.raises(DataError, match="holds no codebook indices"):
        IndexCache(tmp_path / "codes", book)
    with pytest.raises(DataError, match="begun with another codebook"):
        write_codes(loads(), 7, Codebook(book.name, size=32), tmp_path / "codes")
    with pytest.raises(DataError, match="begun with another codebook or data"):
        write_codes(loads(), 7, book, tmp_path / "codes", data="others")
    asked.clear()
    assert write_codes(counted(-1), 7, book, tmp_path / "codes") == (5, [])
    assert asked == [4, 5, 6]
    write_codes(loads(), 7, book, tmp_path / "whole")
    for name in ("keys", "indices"):
        one, other = (np.load(tmp_path / f / f"{name}.npy") for f in ("codes", "whole"))
        assert np.array_equal(one, other)


def test_damage_and_other_codebooks_are_refused(book: Codebook, tmp_path: Path) -> None:
    folder = tmp_path / "codes"
    write_codes(loads(), 7, book, folder)
    with pytest.raises(DataError, match="another codebook, size or range"):
        IndexCache(folder, Codebook(book.name, signed=False))
    with pytest.raises(DataError, match="choose another folder"):
        write_codes(loads(), 7, book, folder)
    data = bytearray((folder / "indices.npy").read_bytes())
    data[-1] ^= 1
    (folder / "indices.npy").write_bytes(data)
    with pytest.raises(DataError, match=r"indices.npy is not what was written"):
        IndexCache(folder, book)
    (folder / "keys.npy").unlink()
    with pytest.raises(DataError, match=r"keys.npy cannot be read"):
        IndexCache(folder, book)
    (folder / "oculi-codes.json").write_text("[]")
    with pytest.raises(DataError, match="holds no codebook indices"):
        IndexCache(folder, book)
