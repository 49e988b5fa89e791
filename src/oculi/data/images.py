"""From a file or bytes to an RGB picture, with one defined outcome for every kind of file.

Pillow alone turns 16-bit grey white, ignores EXIF rotation, warns about bombs after reading
them, opens two dozen formats and puts object addresses into its messages. Everything that goes
wrong here becomes an `ImageError` with a stable reason, so that reports can be compared and
nothing of the process leaks into them.
"""

from __future__ import annotations

import base64
import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from oculi.data import pngfile
from oculi.data.sample import ImageRef, ImageSource
from oculi.errors import DataError, shown

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 40_000_000
MAX_BYTES = 256 * 2**20
MAX_SCANS = 1000

# Each completes the sentence `image "x.png" ...`.
MISSING = "does not exist"
FOLDER = "is a folder, not a file"
SPECIAL = "is not a regular file"
DENIED = "may not be read: no permission"
UNOPENED = "cannot be opened"
NO_NAME = "has an empty name"
NUL = "has a NUL character in its name"
URL = "is a URL; download it and give the file's path"
NO_BASE64 = "is a data URL that is not base64"
BAD_BASE64 = "is a data URL whose base64 is broken"
NO_IMAGE = "is a data URL of something that is no image"
OUTSIDE = "lies outside the image root (through .., an absolute path or a link)"
EMPTY = "is empty (0 bytes)"
TOO_LONG = f"is longer than {MAX_BYTES // 2**20} MiB"
PAGE = "is an HTML, XML or SVG page, not a picture"
UNKNOWN = f"is not a picture in a known format ({', '.join(FORMATS)})"
DAMAGED = "is truncated or damaged"
TOO_LARGE = "has more pixels than the limit of {limit:g} megapixels"
SCANS = f"is a JPEG of more than {MAX_SCANS} scans, which would take minutes to decode"

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Process-wide on purpose: warnings.catch_warnings around each open is not safe under threads.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
# What Pillow says about EXIF and APNG names no file; with `python -W error` it would decide.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class ImageError(DataError):
    """A picture cannot be used; `reason` is one of this module's strings, `name` the file."""

    def __init__(self, reason: str, name: str = "") -> None:
        self.reason, self.name = reason, name
        super().__init__(f"image {shown(name, 200) if name else 'data'} {reason}")

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        return ImageError, (self.reason, self.name)


def image_ref(name: str, root: Path) -> ImageRef:
    """Return the reference for a file name found in a data row, without touching the disk.

    Raises ImageError for what no file system state could make right: an empty name, a NUL, a
    URL, a path that leaves `root`.
    """
    if not name.strip():
        raise ImageError(NO_NAME, name)
    if "\0" in name:
        raise ImageError(NUL, name)
    if "://" in name or name.startswith("data:"):
        raise ImageError(URL, name)
    path = os.path.abspath(root / name)
    if not (_inside(path, os.path.abspath(root)) or _inside(path, os.path.realpath(root))):
        raise ImageError(OUTSIDE, name)
    return ImageRef(path=Path(name), root=root)


def picture(value: str | bytes | ImageSource, root: Path, name: str = "") -> ImageSource:
    """Return the picture that a data row gives as a file name, a data URL or encoded bytes.

    Nothing is decoded. `name` is for messages about bytes. Raises ImageError as `image_ref` does,
    and for a data URL that is no base64 or too long.
    """
    if isinstance(value, bytes):
        return ImageRef(data=value, name=name)
    if not isinstance(value, str):
        return value
    if value[:5].lower() == "data:":
        return _from_data_url(value)
    return image_ref(value, root)


def _from_data_url(url: str) -> ImageRef:
    head, _, body = url.partition(",")
    name = f"{head[:60]},..."
    if not head.lower().endswith(";base64"):
        raise ImageError(NO_BASE64, name)
    if not head[5:].lower().startswith("image/"):
        raise ImageError(NO_IMAGE, name)
    if len(body) > MAX_BYTES // 3 * 4:  # before decoding: that takes as much again
        raise ImageError(TOO_LONG, name)
    try:
        return ImageRef(data=base64.b64decode(body, validate=True), name=name)
    except ValueError:
        raise ImageError(BAD_BASE64, name) from None


def load_image(ref: ImageRef, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode to RGB: upright by EXIF, first frame, alpha over white, 16-bit grey scaled.

    Raises ImageError when the file cannot be had, is not one of `FORMATS`, has more than
    `max_pixels` or does not decode to the end. Damage in the middle is found where the format
    has checksums, which is PNG alone.
    """
    with _opened(ref) as file, _translated(ref, max_pixels):
        image = _header(file, ref, max_pixels)
        orientation = _orientation(image, file)
        if image.format == "PNG":
            pngfile.load(image, file)
        else:
            _check_scans(image, file, _name(ref))
            image.load()
        return to_rgb(image, orientation)


def to_rgb(image: Image.Image, orientation: int | None = None) -> Image.Image:
    """Return a picture that is opened already as `load_image` gives it.

    `orientation` is EXIF's where it has been read. `to_rgb` of oculi.model does the same for an exported
    model, which has no oculi beside it; a test holds the two together.
    """
    if orientation is None:
        image.load()  # in a PNG the note may follow the pixels
        orientation = _exif_orientation(image)
    rgb = _colours(image)
    if orientation in _TRANSPOSE:
        rgb = rgb.transpose(_TRANSPOSE[orientation])
    rgb.info.clear()  # with the EXIF left in, the next reader would rotate once more
    return rgb


def image_bytes(ref: ImageRef) -> bytes:
    """Return the picture as it is encoded, of whatever format; raises ImageError if it cannot be had."""
    with _opened(ref) as file:
        return file.read()


def image_size(ref: ImageRef, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return (width, height) as `load_image` would give it, from the header alone.

    Raises ImageError as `load_image` does, save for damage behind the header.
    """
    with _opened(ref) as file, _translated(ref, max_pixels):
        image = _header(file, ref, max_pixels)
        width, height = image.size
        return (height, width) if _orientation(image, file) >= 5 else (width, height)


def _name(ref: ImageRef) -> str:
    return ref.name or ("" if ref.path is None else str(ref.path))


def _inside(path: str, root: str) -> bool:
    return Path(path).is_relative_to(root)


@contextmanager
def _opened(ref: ImageRef) -> Iterator[BinaryIO]:
    if ref.data is not None:
        _check_length(len(ref.data), _name(ref))
        yield io.BytesIO(ref.data)
        return
    assert ref.path is not None
    if ref.span is None:
        with open_file(ref.path, ref.root, _name(ref)) as file:
            yield file
        return
    offset, length = ref.span
    _check_length(length, _name(ref))
    # The container around the picture may be of any length.
    with open_file(ref.path, ref.root, _name(ref), limit=None) as file:
        file.seek(offset)
        yield io.BytesIO(file.read(length))


def open_file(path: Path, root: Path | None, name: str, limit: int | None = MAX_BYTES) -> BinaryIO:
    """Open a regular, non-empty file of at most `limit` bytes that lies in `root`, links resolved.

    Raises ImageError under the name `name`; its `reason` suits other files as well.
    """
    try:
        real = os.path.realpath(path if root is None else root / path)
        if root is not None and not _inside(real, os.path.realpath(root)):
            raise ImageError(OUTSIDE, name)
        # After realpath no part is a link; one that appears in between must not be followed,
        # and opening a named pipe must not wait for its writer.
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        flags |= getattr(os, "O_BINARY", 0)
        file = open(real, "rb", opener=lambda name, _: os.open(name, flags))  # noqa: SIM115
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError(MISSING, name) from None
    except IsADirectoryError:
        raise ImageError(FOLDER, name) from None
    except PermissionError:
        raise ImageError(DENIED, name) from None
    except ValueError:
        raise ImageError(NUL if "\0" in name else UNOPENED, name) from None
    except OSError:
        raise ImageError(UNOPENED, name) from None
    try:
        _check_status(os.fstat(file.fileno()), name, limit)
    except ImageError:
        file.close()
        raise
    return file


def _check_status(status: os.stat_result, name: str, limit: int | None) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(FOLDER, name)
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(SPECIAL, name)
    _check_length(status.st_size, name, limit)


def _check_length(length: int, name: str, limit: int | None = MAX_BYTES) -> None:
    if length == 0:
        raise ImageError(EMPTY, name)
    if limit is not None and length > limit:
        raise ImageError(TOO_LONG if limit == MAX_BYTES else f"is longer than {limit} bytes", name)


@contextmanager
def _translated(ref: ImageRef, max_pixels: int) -> Iterator[None]:
    """Turn whatever Pillow raises into an ImageError without Pillow's words."""
    try:
        yield
    except (ImageError, MemoryError):  # no memory is not the picture's fault
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(TOO_LARGE.format(limit=max_pixels / 1e6), _name(ref)) from None
    except Exception:
        # Decoders raise OSError, SyntaxError, ValueError, struct.error, IndexError and more for
        # bad bytes; to the user they are all the same, and the text may hold object addresses.
        raise ImageError(DAMAGED, _name(ref)) from None


def _header(file: BinaryIO, ref: ImageRef, max_pixels: int) -> ImageFile.ImageFile:
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageError(_unidentified(file), _name(ref)) from None
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(DAMAGED, _name(ref))
    if width * height > max_pixels:
        raise ImageError(TOO_LARGE.format(limit=max_pixels / 1e6), _name(ref))
    return image


def _unidentified(file: BinaryIO) -> str:
    file.seek(0)
    start = file.read(512)
    if start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
        return PAGE
    # A known signature that Pillow still refuses is a broken file, not another format.
    known = (pngfile.MAGIC, b"\xff\xd8\xff", b"GIF87a", b"GIF89a")
    if start.startswith(known) or (start.startswith(b"RIFF") and start[8:12] == b"WEBP"):
        return DAMAGED
    return UNKNOWN


def _orientation(image: ImageFile.ImageFile, file: BinaryIO) -> int:
    """Return the EXIF orientation, 1 when there is none or it cannot be read.

    PNG is special: the chunk may follow the pixels, and Pillow's `getexif` decodes them all to
    look for it. The chunks are walked here instead, and the base class method reads the rest.
    """
    try:
        if image.format == "PNG" and "exif" not in image.info:
            exif = pngfile.exif(file)
            if exif:
                image.info["exif"] = b"Exif\0\0" + exif
    except MemoryError:
        raise
    except Exception:
        return 1
    return _exif_orientation(image)


def _exif_orientation(image: Image.Image) -> int:
    try:
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except MemoryError:
        raise
    except Exception:
        return 1  # a damaged note about the picture does not make the picture unusable
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _check_scans(image: ImageFile.ImageFile, file: BinaryIO, name: str) -> None:
    """Refuse a scan bomb: in a progressive JPEG ten bytes can be a pass over all pixels."""
    if "progressive" not in image.info:
        return
    back = file.tell()
    file.seek(0)
    if file.read().count(b"\xff\xda") > MAX_SCANS:
        raise ImageError(SCANS, name)
    file.seek(back)


def _colours(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _grey16_to_rgb(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    # A copy, because the original of an RGB file still refers to the closed file.
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _grey16_to_rgb(image: Image.Image) -> Image.Image:
    """Scale 0..65535 to 0..255; Pillow's own conversion clamps, which makes most of it white."""
    import numpy as np

    values = np.asarray(image).astype(np.int32)
    scaled = ((values.clip(0, 65535) + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        scaled[values == transparent] = 255
    return Image.fromarray(scaled).convert("RGB")
