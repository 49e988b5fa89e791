"""Every class of picture file has one defined outcome: the right pixels, or a stable reason."""

from __future__ import annotations

import base64
import io
import os
import pickle
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from oculi.data import images
from oculi.data.images import ImageError, image_ref, image_size, load_image, picture
from oculi.data.sample import ImageRef

WHITE = (255, 255, 255)


def encode(image: Image.Image, format: str = "PNG", **options: Any) -> ImageRef:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return ImageRef(data=buffer.getvalue())


def pixel(ref: ImageRef, at: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    image = load_image(ref)
    assert image.mode == "RGB"
    assert image.size == image_size(ref)
    value = image.getpixel(at)
    assert isinstance(value, tuple)
    return value


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int) -> bytes:
    ihdr = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", zlib.compress(b"\0" * 99))


def reason(ref: ImageRef) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(ref)
    assert "0x" not in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize("format", images.FORMATS)
def test_each_format_loads(format: str) -> None:
    ref = encode(Image.new("RGB", (16, 8), (200, 30, 40)), format)
    assert load_image(ref).size == (16, 8)
    assert np.allclose(pixel(ref), (200, 30, 40), atol=6)


def test_grey_16_bit_is_scaled_not_clamped() -> None:
    values = np.array([[0, 257, 32768, 65535, 128 * 257]], dtype=np.uint16)
    ref = encode(Image.fromarray(values))
    assert Image.open(io.BytesIO(ref.data or b"")).mode == "I;16"
    assert np.asarray(load_image(ref))[0].tolist() == [[v] * 3 for v in (0, 1, 128, 255, 128)]


def test_grey_16_bit_transparent_value_becomes_white() -> None:
    data = encode(Image.fromarray(np.array([[300, 900]], dtype=np.uint16))).data or b""
    cut = data.index(b"IDAT") - 4
    data = data[:cut] + chunk(b"tRNS", struct.pack(">H", 300)) + data[cut:]
    assert pixel(ImageRef(data=data)) == WHITE
    assert pixel(ImageRef(data=data), (1, 0)) == (4, 4, 4)


def test_cmyk_is_converted() -> None:
    ref = encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    red, green, blue = pixel(ref)
    assert red > 240 and green < 15 and blue < 15


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_alpha_is_laid_over_white(format: str) -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 255))
    image.putpixel((2, 0), (0, 0, 0, 128))
    ref = encode(image, format, **({"lossless": True, "exact": True} if format == "WEBP" else {}))
    assert pixel(ref) == WHITE
    assert pixel(ref, (1, 0)) == (255, 0, 0)
    assert pixel(ref, (2, 0)) == (127, 127, 127)


def test_grey_with_alpha_and_palette_with_alpha_are_laid_over_white() -> None:
    assert pixel(encode(Image.new("LA", (2, 2), (0, 0)))) == WHITE
    assert pixel(encode(Image.new("LA", (2, 2), (40, 255)))) == (40, 40, 40)
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert pixel(encode(palette)) == (10, 20, 30)
    for format in ("PNG", "GIF"):
        ref = encode(palette, format, transparency=0)
        assert pixel(ref) == WHITE
        assert pixel(ref, (1, 0)) == (40, 50, 60)


def test_bilevel_and_grey() -> None:
    bilevel = Image.new("1", (2, 1), 0)
    bilevel.putpixel((1, 0), 1)
    assert (pixel(encode(bilevel)), pixel(encode(bilevel), (1, 0))) == ((0, 0, 0), WHITE)
    assert pixel(encode(Image.new("L", (2, 2), 77))) == (77, 77, 77)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "MPO"])
def test_animated_gives_the_first_frame(format: str) -> None:
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    options = {"lossless": True} if format == "WEBP" else {}
    ref = encode(first, format, save_all=True, append_images=[second], **options)
    assert getattr(Image.open(io.BytesIO(ref.data or b"")), "n_frames", 1) == 2
    assert np.allclose(pixel(ref), (255, 0, 0), atol=2)  # MPO is JPEG inside


def upright() -> Image.Image:
    image = Image.new("RGB", (24, 16), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 12, 8))
    return image


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    ref = encode(upright(), format, exif=exif.tobytes())
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(ref.data or b""))).convert("RGB")
    loaded = load_image(ref)
    assert loaded.size == image_size(ref) == ((16, 24) if orientation >= 5 else (24, 16))
    assert np.array_equal(np.asarray(loaded), np.asarray(wanted))
    assert np.array_equal(np.asarray(ImageOps.exif_transpose(loaded)), np.asarray(loaded))


def test_png_orientation_behind_the_pixels_counts_and_needs_no_decoding() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = encode(upright()).data or b""
    end = data.index(b"IEND") - 4
    late = data[:end] + chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + data[end:]
    ref = ImageRef(data=late)
    assert image_size(ref) == load_image(ref).size == (16, 24)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0", b"\xff" * 40])
def test_damaged_exif_does_not_spoil_the_picture(exif: bytes) -> None:
    ref = encode(upright(), "JPEG", exif=exif)
    assert image_size(ref) == load_image(ref).size == (24, 16)


@pytest.mark.parametrize("side", [7000, 10_000, 60_000])
def test_bombs_are_refused_from_the_header(side: int) -> None:
    ref = ImageRef(data=png_header(side, side))
    for action in ("error", "always"):
        with warnings.catch_warnings(record=True):
            warnings.simplefilter(action)
            assert reason(ref) == "has more pixels than the limit of 40 megapixels"
            with pytest.raises(ImageError, match="limit of 40 megapixels"):
                image_size(ref)


def test_bombs_leave_no_warning_on_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(10_000, 10_000))
    code = (
        "import sys; from pathlib import Path; from oculi.data.sample import ImageRef\n"
        "try: ImageRef(path=Path(sys.argv[1])).size()\n"
        "except Exception as error: print(error.reason)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "bomb.png")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert done.stderr == ""
    assert done.stdout == "has more pixels than the limit of 40 megapixels\n"


def test_size_reads_the_header_only() -> None:
    ref = ImageRef(data=png_header(6000, 5000))
    assert image_size(ref) == (6000, 5000)
    assert reason(ref) == images.DAMAGED


@pytest.mark.parametrize("format", images.FORMATS)
def test_truncated_is_refused(format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), format).data or b""
    for part in (0.9, 0.5, 0.1):
        assert reason(ImageRef(data=data[: int(len(data) * part)])) == images.DAMAGED


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"", images.EMPTY),
        (b"<!DOCTYPE html><html><body>404", images.PAGE),
        (b"\xef\xbb\xbf\n <svg xmlns='http://www.w3.org/2000/svg'/>", images.PAGE),
        (b"%PDF-1.7 ...", images.UNKNOWN),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", images.UNKNOWN),
        (b"just text", images.UNKNOWN),
        (b"\x89PNG\r\n\x1a\n", images.DAMAGED),
        (b"\xff\xd8\xff", images.DAMAGED),
    ],
)
def test_what_is_no_picture_has_a_reason(data: bytes, wanted: str) -> None:
    assert reason(ImageRef(data=data)) == wanted


def test_float_tiff_is_not_a_known_format() -> None:
    ref = encode(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF")
    assert reason(ref) == images.UNKNOWN


def test_too_long_a_file(tmp_path: Path) -> None:
    with (tmp_path / "long.png").open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)
    assert reason(ImageRef(path=Path("long.png"), root=tmp_path)) == images.TOO_LONG


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    for place in (root / "in.png", root / "sub" / "in.png", tmp_path / "out.png"):
        Image.new("RGB", (3, 2), (1, 2, 3)).save(place)
    (root / "inner.png").symlink_to(root / "in.png")
    (root / "outer.png").symlink_to(tmp_path / "out.png")
    (root / "folder").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    (root / "empty.png").touch()
    os.mkfifo(root / "pipe.png")
    return root


@pytest.mark.parametrize("name", ["in.png", "sub/in.png", "sub/../in.png", "inner.png"])
def test_paths_under_the_root_load(root: Path, name: str) -> None:
    ref = image_ref(name, root)
    assert ref.load().size == ref.size() == (3, 2)
    assert image_ref(str(root / name), root).size() == (3, 2)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("", images.NO_NAME),
        ("a\0.png", images.NUL),
        ("https://example.org/a.png", images.URL),
        ("file:///etc/passwd", images.URL),
        ("data:image/png;base64,AAAA", images.URL),
        ("../out.png", images.OUTSIDE),
        ("sub/../../out.png", images.OUTSIDE),
        ("/etc/passwd", images.OUTSIDE),
        ("outer.png", images.OUTSIDE),
        ("folder/out.png", images.OUTSIDE),
        ("none.png", images.MISSING),
        ("in.png/x.png", images.MISSING),
        ("sub", images.FOLDER),
        (".", images.FOLDER),
        ("empty.png", images.EMPTY),
        ("pipe.png", images.SPECIAL),
        ("loop", images.UNOPENED),
        ("x" * 5000, images.UNOPENED),
    ],
)
def test_bad_paths_have_a_reason(root: Path, name: str, wanted: str) -> None:
    with pytest.raises(ImageError) as caught:
        image_ref(name, root).load()
    assert caught.value.reason == wanted
    assert str(root) not in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.reason, str(again)) == (wanted, str(caught.value))


def test_a_root_that_is_a_link_and_a_reference_without_root(root: Path) -> None:
    link = root.parent / "link"
    link.symlink_to(root)
    assert image_ref("in.png", link).size() == (3, 2)
    assert image_ref(str(root / "in.png"), link).size() == (3, 2)
    assert ImageRef(path=root / "outer.png").size() == (3, 2)


def test_a_signal_at_any_moment_of_opening_comes_out_as_it_is(root: Path) -> None:
    """A run that is asked to stop ended in "Bad file descriptor": the file had been closed already."""
    places = {images.open_file.__code__.co_filename, os.fdopen.__code__.co_filename}
    moment, reached = 0, True
    while reached:
        moment, reached, seen = moment + 1, False, 0

        def interrupt(frame: FrameType, event: str, value: Any) -> Any:
            nonlocal reached, seen
            del value  # the traceback would keep the file open
            seen += frame.f_code.co_filename in places
            if seen == moment and not reached:  # noqa: B023
                reached = True
                raise KeyboardInterrupt
            return interrupt

        before = sys.gettrace()
        sys.settrace(interrupt)
        try:
            images.open_file(Path("in.png"), root, "in.png").close()
            assert not reached
        except KeyboardInterrupt:
            assert reached
        finally:
            sys.settrace(before)
    assert moment > 20


def test_a_reference_is_a_path_or_bytes() -> None:
    for wrong in ({}, {"path": Path("a"), "data": b"b"}):
        with pytest.raises(ValueError, match="exactly one"):
            ImageRef(**wrong)  # type: ignore[arg-type]


def test_a_picture_from_a_name_a_data_url_or_bytes(root: Path) -> None:
    data = (root / "in.png").read_bytes()
    url = "DATA:image/png;base64," + base64.b64encode(data).decode()
    for value in ("in.png", url, data, ImageRef(data=data)):
        assert picture(value, root).size() == picture(value, root).load().size == (3, 2)
    with pytest.raises(ImageError, match=r'image "data:image/png;base64,..." is not a picture'):
        picture("data:image/png;base64,AAAA", root).load()
    with pytest.raises(ImageError, match=r'image "b.png" is empty \(0 bytes\)'):
        picture(b"", root, "b.png").size()


def test_a_picture_inside_a_larger_file(root: Path) -> None:
    data = (root / "in.png").read_bytes()
    with (root / "all").open("wb") as file:
        file.truncate(images.MAX_BYTES)
        file.seek(images.MAX_BYTES)
        file.write(data)
    whole = ImageRef(path=root / "all", span=(images.MAX_BYTES, len(data)), name="x.png")
    assert whole.size() == whole.load().size == (3, 2)
    for span, wanted in (
        ((images.MAX_BYTES, len(data) - 30), images.DAMAGED),
        ((images.MAX_BYTES, 0), images.EMPTY),
        ((0, images.MAX_BYTES + 1), images.TOO_LONG),
        ((0, 50), images.UNKNOWN),
    ):
        ref = ImageRef(path=root / "all", span=span, name="x.png")
        assert reason(ref) == wanted
        with pytest.raises(ImageError, match=r'image "x.png" '):
            ref.load()
    with pytest.raises(ValueError, match="a span only of a file"):
        ImageRef(data=b"x", span=(0, 1))


SEEDS = [encode(upright(), format).data or b"" for format in images.FORMATS]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255))))
def test_flipped_bytes_give_a_picture_or_an_image_error(
    data: bytes, flips: list[tuple[float, int]]
) -> None:
    changed = bytearray(data)
    for place, value in flips:
        changed[int(place * len(changed))] = value
    ref = ImageRef(data=bytes(changed))
    try:
        assert load_image(ref).size == image_size(ref)
    except ImageError as error:
        assert "0x" not in str(error)  # noqa: PT017 - both outcomes are right


@pytest.mark.parametrize("where", ["open", "getexif"])
def test_no_memory_is_not_called_a_damaged_picture(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")

    def out_of_memory(*args: Any, **kwargs: Any) -> None:
        raise MemoryError

    owner = Image if where == "open" else Image.Image
    monkeypatch.setattr(owner, where, out_of_memory)
    with pytest.raises(MemoryError):
        load_image(image_ref("a.png", tmp_path))
