"""Small picture files, made so that a test can see how they were turned, cut and coloured.

What Pillow cannot write is put together from bytes.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

from PIL import Image

Files = dict[str, bytes]
COLOURS = {
    "r": (255, 0, 0),
    "g": (0, 255, 0),
    "b": (0, 0, 255),
    "k": (0, 0, 0),
    "d": (85, 85, 85),
    "h": (127, 127, 127),
    "l": (170, 170, 170),
    "w": (255, 255, 255),
}
MAGIC = b"\x89PNG\r\n\x1a\n"


def pixel(colours: str) -> bytes:
    """Pixels of a row as RGB bytes."""
    return b"".join(bytes(COLOURS[colour]) for colour in colours)


def quarters(colours: str = "rgbk", width: int = 24, height: int = 16) -> Image.Image:
    """A quarter each: upper left, upper right, lower left, lower right."""
    image = Image.new("RGB", (2, 2))
    image.putdata([COLOURS[colour] for colour in colours])
    return image.resize((width, height), Image.Resampling.NEAREST)


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def jpeg(image: Image.Image | None = None, **options: Any) -> bytes:
    return encode(image or quarters(), "JPEG", **{"quality": 95, "subsampling": 0, **options})


def webp(image: Image.Image | None = None, **options: Any) -> bytes:
    return encode(image or quarters(), "WEBP", lossless=True, exact=True, **options)


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    rows: Iterable[bytes] = (pixel("rg"), pixel("bk")),
    size: tuple[int, int] = (2, 2),
    depth: int = 8,
    colour: int = 2,
    before: bytes = b"",
    after: bytes = b"",
    interlace: int = 0,
) -> bytes:
    """A PNG from unfiltered rows; `before` and `after` are chunks around the pixels."""
    head = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, interlace)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    body = before + chunk(b"IDAT", pixels) + after
    return MAGIC + chunk(b"IHDR", head) + body + chunk(b"IEND")


def split(data: bytes) -> tuple[bytes, bytes, bytes]:
    """A PNG before its pixels, its IDAT chunk, and what comes after."""
    start = data.index(b"IDAT") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    return data[:start], data[start:end], data[end:]


def segment(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, kind, len(body) + 2) + body


def with_segment(kind: int, body: bytes, data: bytes | None = None) -> bytes:
    """A JPEG with one more segment in front."""
    data = data or jpeg()
    return data[:2] + segment(kind, body) + data[2:]


def tiff(orientation: int, order: str = "<", kind: int = 3, next_: int = 0) -> bytes:
    """EXIF of one entry; `kind` 3 is a short."""
    mark = b"II" if order == "<" else b"MM"
    value = struct.pack(order + "HH", orientation, 0) if kind == 3 else struct.pack("4s", b"6")
    entry = struct.pack(order + "HHI", 0x112, kind, 1) + value
    return mark + struct.pack(order + "HIH", 42, 8, 1) + entry + struct.pack(order + "I", next_)


def exif(body: bytes) -> bytes:
    return with_segment(0xE1, b"Exif\0\0" + body)


def bmp(
    body: bytes,
    depth: int,
    palette: bytes = b"",
    size: tuple[int, int] = (2, 2),
    compression: int = 0,
    colours: int = 0,
    masks: bytes = b"",
) -> bytes:
    """A BMP of the usual header; rows of `body` go from the bottom up and are multiples of 4."""
    at = 54 + len(masks) + len(palette)
    head = struct.pack("<IiiHHIIiiII", 40, *size, 1, depth, compression, 0, 0, 0, colours, 0)
    return struct.pack("<2sIHHI", b"BM", at + len(body), 0, 0, at) + head + masks + palette + body


def gif(colours: str = "rgbk", **options: Any) -> bytes:
    return encode(quarters(colours), "GIF", **options)


def tiny_gif(
    palette: bytes = pixel("rgbk"),
    screen: tuple[int, int] = (2, 2),
    local: bytes = b"",
    indices: Sequence[int] = (0, 1, 2, 3),
    code_size: int = 2,
) -> bytes:
    """A GIF of one frame of 2 x 2; its codes are cleared so often that they stay 3 bits long."""
    codes = [code for at in (0, 2) for code in (4, *indices[at : at + 2])] + [5]
    bits = sum(code << 3 * place for place, code in enumerate(codes)).to_bytes(3, "little")
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x81 if palette else 0, 0, 0) + palette
    frame = b"," + struct.pack("<HHHHB", 0, 0, 2, 2, 0x81 if local else 0) + local
    return head + frame + bytes([code_size, 3]) + bits + b"\0;"


def cut(data: bytes, stem: str, suffix: str, **places: int) -> Files:
    return {f"{stem}-{name}{suffix}": data[:place] for name, place in places.items()}
