"""What Pillow leaves open about a PNG: damaged pixels, missing rows, the scale of its key colour.

Chunks are walked without decoding them. Errors are ValueErrors; `images` gives them their words.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from PIL import ImageFile

MAGIC = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# First column and row, then the steps between columns and rows (PNG specification, 8.1).
_FLAT = ((0, 0, 1, 1),)
_ADAM7 = (
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4),
    (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2),
)  # fmt: skip


def exif(file: BinaryIO) -> bytes:
    """Return the EXIF of a PNG, which may stand behind the pixels; empty when there is none."""
    back = file.tell()
    try:
        for kind, length in _chunks(file):
            if kind == b"eXIf":
                return file.read(min(length, 2**20))
        return b""
    finally:
        file.seek(back)


def load(image: ImageFile.ImageFile, file: BinaryIO) -> None:
    """Decode the pixels of an opened PNG; raise ValueError when any of them are not there.

    Pillow compares the checksums of all chunks but those of the pixels, and leaves black what a
    stream that ends early does not give.
    """
    back = file.tell()
    _check_pixels(file)
    file.seek(back)
    image.load()
    depth, colour, interlace = _header(file)
    last = image.crop((0, image.height - 1, image.width, image.height))
    # Inflating once more costs a third of the decoding: only where a row may be missing.
    if interlace or not any(last.tobytes()):
        needed = _length(image.size, depth * _CHANNELS[colour], _ADAM7 if interlace else _FLAT)
        if not _holds(file, needed):
            raise ValueError("rows are missing")
    _scale_key(image, depth)


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield kind and length of every chunk up to IEND, with the file at the chunk's body."""
    place, kind = len(MAGIC), b""
    while kind != b"IEND":
        file.seek(place)
        head = file.read(8)
        if len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head)
        yield kind, length
        place += 8 + length + 4


def _pixels(file: BinaryIO) -> Iterator[bytes]:
    """Yield the bodies of the pixels' chunks, with the file at their checksums."""
    end = file.seek(0, os.SEEK_END)
    for kind, length in _chunks(file):
        if kind == b"IDAT":
            yield file.read(min(length, end))  # a lie about the length must not fill the memory


def _check_pixels(file: BinaryIO) -> None:
    for body in _pixels(file):
        if file.read(4) != zlib.crc32(body, zlib.crc32(b"IDAT")).to_bytes(4, "big"):
            raise ValueError("a checksum is wrong")


def _header(file: BinaryIO) -> tuple[int, int, int]:
    """Bit depth, colour type and interlace method."""
    file.seek(len(MAGIC) + 8 + 8)
    depth, colour, _, _, interlace = file.read(5)
    return depth, colour, interlace


def _length(size: tuple[int, int], bits: int, passes: tuple[tuple[int, ...], ...]) -> int:
    """Bytes of all rows before they are deflated, each behind the byte that names its filter."""
    width, height = size
    total = 0
    for left, top, across, down in passes:
        columns, rows = (width - left + across - 1) // across, (height - top + down - 1) // down
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def _holds(file: BinaryIO, needed: int) -> bool:
    """Whether so many bytes come out of the pixels' chunks; no more than that are inflated."""
    inflater = zlib.decompressobj()
    for body in _pixels(file):
        while body and needed > 0:
            needed -= len(inflater.decompress(body, min(needed, 2**20)))
            body = inflater.unconsumed_tail
    return needed <= 0


def _scale_key(image: ImageFile.ImageFile, depth: int) -> None:
    """Give the transparent colour in 8 bits, to which Pillow scales the pixels but not the key."""
    key = image.info.get("transparency")
    if image.mode == "L" and isinstance(key, int) and depth < 8:
        top = 2**depth - 1
        image.info["transparency"] = (key & top) * 255 // top
    if image.mode == "RGB" and isinstance(key, tuple) and depth == 16:
        # Colours less than 1/256 from the key go with it: Pillow keeps no more of them.
        image.info["transparency"] = tuple(value >> 8 for value in key)
