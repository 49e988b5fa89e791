"""A picture's record: what is the same stays the same, and what is about zero stays zero."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from oculi.data.fingerprint import RECORD, fingerprint, fingerprints, look, perceptual_hash
from oculi.data.images import MAX_BYTES
from oculi.data.sample import ImageRef
from oculi.testbed import playroom


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_a_record_of_a_file_of_a_part_of_one_and_of_bytes_is_the_same(tmp_path: Path) -> None:
    data = png(Image.new("RGB", (5, 4), "red"))
    (tmp_path / "a.png").write_bytes(data)
    (tmp_path / "a.tar").write_bytes(b"before" + data + b"behind")
    refs = [
        ImageRef(path=Path("a.png"), root=tmp_path),
        ImageRef(path=tmp_path / "a.tar", span=(6, len(data))),
        ImageRef(data=data),
    ]
    (record,) = {fingerprint(ref) for ref in refs}
    values = np.frombuffer(record, RECORD)
    assert len(record) == RECORD.itemsize == 448
    assert values["file"].tobytes() == hashlib.sha256(data).digest()[:16]
    assert (values["luma"] == 76).all() and (values["chroma"] == [85, 255]).all()


def test_a_picture_that_is_drawn_has_its_pixels_for_a_file() -> None:
    picture = playroom.item(1, "train", 0).picture
    drawn = np.frombuffer(fingerprint(picture), RECORD)
    saved = np.frombuffer(fingerprint(ImageRef(data=png(picture.load()))), RECORD)
    assert (drawn["file"] == drawn["pixels"]).all()
    assert all((drawn[name] == saved[name]).all() for name in ("pixels", "look", "hash", "luma"))


def test_what_is_wrong_stands_in_place_of_a_record(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"short")
    broken = ImageRef(path=tmp_path / "a.tar", span=(0, 5), name="x.png")
    long = ImageRef(path=tmp_path / "a.tar", span=(0, MAX_BYTES + 1), name="y.png")
    good = ImageRef(data=png(Image.new("RGB", (1, 1))))
    one, two, three = fingerprints([broken, good, long])
    assert isinstance(one, str) and one.startswith('image "x.png" is not a picture')
    assert isinstance(two, bytes)
    assert three == 'image "y.png" is longer than 256 MiB'


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (2000, 2), (33, 31)])
def test_pictures_of_any_size_have_a_look(size: tuple[int, int]) -> None:
    luma, chroma = look(Image.new("RGB", size, "white"))
    assert luma.shape == (16, 16) and chroma.shape == (8, 8, 2)
    assert (luma == 255).all() and (chroma == 128).all()


def test_the_hash_of_a_symmetric_picture_survives_noise() -> None:
    """Half of its frequencies are zero, and noise decides their signs."""
    image = Image.new("L", (16, 16), "white")
    ImageDraw.Draw(image).ellipse((2, 2, 13, 13), 90)
    luma = np.asarray(image)
    first = np.frombuffer(perceptual_hash(luma), np.uint8)
    draw = np.random.default_rng(0)
    for _ in range(20):
        noisy = (luma + draw.normal(0, 2.5, luma.shape)).clip(0, 255).round().astype(np.uint8)
        other = np.frombuffer(perceptual_hash(noisy), np.uint8)
        assert np.bitwise_count(first ^ other).sum() <= 7
    other = np.frombuffer(perceptual_hash(np.roll(luma, (4, -5), (0, 1))), np.uint8)
    assert np.bitwise_count(first ^ other).sum() > 15


def test_a_flat_picture_has_an_empty_hash() -> None:
    assert perceptual_hash(np.full((16, 16), 200, np.uint8)) == bytes(16)
