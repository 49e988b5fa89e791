"""Every awkward file has its outcome here: a picture of this size and corners, or this reason.

A picture is its size and the colours of its corners (upper left, upper right, lower left, lower
right), letters as in `imagefiles.COLOURS`, `~` before those that a lossy format blurs, `?` for what
damage left. A file that is not listed fails, and so does a listed one that is not made.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from awkward_images import NAMES, data_urls, write
from datafiles import said
from imagefiles import COLOURS, quarters
from oculi.cli import app
from oculi.data.check import check
from oculi.data.images import (
    BAD_BASE64,
    DAMAGED,
    DENIED,
    EMPTY,
    FOLDER,
    MAX_PIXELS,
    MISSING,
    NO_BASE64,
    NO_IMAGE,
    OUTSIDE,
    PAGE,
    SCANS,
    SPECIAL,
    TOO_LARGE,
    TOO_LONG,
    UNKNOWN,
    UNOPENED,
    URL,
    ImageError,
    picture,
)

BOMB = TOO_LARGE.format(limit=MAX_PIXELS / 1e6)
WHOLE, LARGE, BLURRED = "2x2 rgbk", "24x16 rgbk", "24x16 ~rgbk"
OPEN_FILES = Path("/proc/self/fd")
ROOT = pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")

# pytest puts its own filters in the place of those that the reader sets.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def each(outcome: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), outcome)


OUTCOMES: dict[str, str] = {
    # Nothing, or something else that a crawler saved under the name of a picture.
    **each(EMPTY, "empty.jpg empty.png"),
    **each(UNKNOWN, "one-byte.png newline.jpg"),
    **each(PAGE, "404.jpg bom.html.jpg drawing.png denied.jpg"),
    **each(UNKNOWN, "utf16.html.jpg pdf.jpg zip.jpg gzip.png json.jpg text.jpg lfs.png base64.png"),
    **each(UNKNOWN, "video.jpg parquet.png zeros.png noise.jpg"),
    # Formats that are pictures, but not of the five.
    **each(UNKNOWN, "tiff.jpg ico.jpg ppm.jpg tga.jpg pcx.jpg sgi.jpg dds.jpg icns.jpg qoi.jpg"),
    **each(UNKNOWN, "jp2.jpg dib.jpg im.jpg xbm.png eps.jpg psd.jpg fits.png avif.jpg heic.jpg"),
    **each(UNKNOWN, "jxl.jpg jpeg2000-stream.jpg wav.webp bigtiff.jpg"),
    **each(UNKNOWN, "float.tiff nan.png frames.tif"),
    # Cut off. What is still there decides what it is called; only ends without pixels may lack.
    "png-cut-in-magic.png": UNKNOWN,
    **each(DAMAGED, "png-cut-magic.png png-cut-in-header.png png-cut-header.png"),
    **each(DAMAGED, "png-cut-pixels.png png-cut-checksum.png"),
    **each(WHOLE, "png-cut-end.png png-cut-in-end.png"),
    **each(DAMAGED, "jpeg-cut-magic.jpg jpeg-cut-in-header.jpg jpeg-cut-frame.jpg"),
    **each(DAMAGED, "jpeg-cut-scan.jpg jpeg-cut-pixels.jpg jpeg-cut-end.jpg jpeg-cut-in-end.jpg"),
    "webp-cut-magic.webp": UNKNOWN,
    **each(DAMAGED, "webp-cut-name.webp webp-cut-header.webp webp-cut-end.webp"),
    "webp-cut-lossy-half.webp": DAMAGED,
    **each(DAMAGED, "gif-cut-magic.gif gif-cut-header.gif gif-cut-palette.gif gif-cut-half.gif"),
    "gif-cut-trailer.gif": LARGE,
    "bmp-cut-magic.bmp": UNKNOWN,
    **each(DAMAGED, "bmp-cut-header.bmp bmp-cut-pixels.bmp bmp-cut-half.bmp bmp-cut-end.bmp"),
    **each(DAMAGED, "zero-tail.png zero-tail.jpg zero-tail.webp"),
    # A JPEG has no checksums, and nothing says how long its pixels should be: grey, and not seen.
    "lost-middle.jpg": "24x16 ~r?hh",
    "text-mode.png": UNKNOWN,
    # Too much.
    "behind.png": WHOLE,
    **each(LARGE, "behind.gif behind.bmp behind.webp"),
    **each(BLURRED, "behind.jpg two.jpg"),
    **each(UNKNOWN, "newline-first.png bom-first.jpg"),
    # The name says nothing.
    **each(WHOLE, "png.jpg no-extension png.txt"),
    **each(LARGE, "gif.jpeg webp.jpg bmp.png"),
    "jpeg.png": BLURRED,
    # Bombs are refused by their header.
    **each(BOMB, "bomb-7000.png bomb-60000.png bomb-31-bit.png bomb.jpg bomb.gif bomb.bmp"),
    **each(BOMB, "bomb.webp bomb-canvas.webp"),
    "scans.jpg": SCANS,
    **each(DAMAGED, "zero.png zero.gif zero.jpg"),
    "zero.bmp": UNKNOWN,
    # Turned upright.
    "exif-1.jpg": "24x16 ~rgbk",
    "exif-2.jpg": "24x16 ~grkb",
    "exif-3.jpg": "24x16 ~kbgr",
    "exif-4.jpg": "24x16 ~bkrg",
    "exif-5.jpg": "16x24 ~rbgk",
    "exif-6.jpg": "16x24 ~brkg",
    "exif-7.jpg": "16x24 ~kgbr",
    "exif-8.jpg": "16x24 ~gkrb",
    "exif-6-big-endian.jpg": "16x24 ~brkg",
    "exif-6.png": "2x2 brkg",
    "exif-8-behind.png": "2x2 gkrb",
    "exif-3.webp": "24x16 kbgr",
    **each(BLURRED, "exif-0.jpg exif-9.jpg exif-as-text.jpg exif-rubbish.jpg exif-empty.jpg"),
    **each(BLURRED, "exif-cut.jpg exif-far.jpg mpf-rubbish.jpg icc-rubbish.jpg"),
    "exif-loop.jpg": "16x24 ~brkg",
    "exif-rubbish.png": WHOLE,
    # Colours: ink, palettes, what shows white through, few bits and many.
    **each(BLURRED, "cmyk.jpg cmyk-unmarked.jpg ycck.jpg"),
    **each(WHOLE, "palette.png palette-2-bit.png"),
    **each("2x2 rgbw", "palette-clear.png palette-4-bit.png"),
    "palette-alpha.png": "2x2 wgbh",
    "palette-1-bit.png": "2x2 rggr",
    **each(DAMAGED, "palette-none.png palette-late.png"),
    "palette-short.png": "2x2 rgkk",
    "clear.gif": "24x16 rwbk",
    **each("2x2 wgbh", "rgba.png rgba-16.png"),
    "rgba.webp": "24x16 wgbk",
    "rgba-lossy.webp": "24x16 ~wgbk",
    **each("2x2 wdlh", "grey-alpha.png grey-alpha-16.png"),
    "rgb-key.png": "2x2 rwbk",
    "1-bit.png": "2x2 kwwk",
    "1-bit-key.png": "2x2 wwww",
    **each("2x2 kdlw", "2-bit.png 4-bit.png grey-16.png grey-16-near-key.png"),
    **each("2x2 kwlw", "2-bit-key.png grey-16-key.png"),
    "4-bit-key.png": "2x2 kdww",
    "8-bit-key.png": "2x2 wdlw",
    "1-bit.gif": "24x16 kwwk",
    "grey.jpg": "24x16 ~kdlw",
    "rgb-16.png": WHOLE,
    "rgb-16-key.png": "2x2 rwbk",
    "rgb-16-key-low.png": "2x2 wwbw",  # Pillow keeps 8 of 16 bits, and so does the key
    # Interlaced and animated.
    "interlaced.png": WHOLE,
    "interlaced-odd.png": "2x3 rgbw",
    **each(DAMAGED, "interlaced-cut.png interlaced-short.png interlaced-odd-short.png"),
    "interlaced-grey.png": "8x16 llll",
    "interlaced-row-short.png": DAMAGED,
    **each(LARGE, "interlaced.gif flat.gif animated.gif animated.webp animated.png"),
    "animated-behind.png": LARGE,
    **each(WHOLE, "no-frames.png many-frames.png"),
    "stereo.mpo": BLURRED,
    # JPEG.
    **each(
        BLURRED, "progressive.jpg progressive-early-end.jpg restarts.jpg rgb.jpg chroma-420.jpg"
    ),
    **each(BLURRED, "fill-bytes.jpg comment.jpg no-jfif.jpg thumbnail.jpg no-tables.jpg"),
    **each(DAMAGED, "progressive-cut.jpg lossless.jpg hierarchical.jpg arithmetic-lossless.jpg"),
    **each(DAMAGED, "jpeg-ls.jpg arithmetic.jpg 12-bit.jpg two-components.jpg no-frame.jpg"),
    **each(DAMAGED, "no-quantizer.jpg long-segment.jpg no-height.jpg"),
    # PNG.
    **each(WHOLE, "no-end.png bytewise.png empty-idat.png many-rows.png unknown-critical.png"),
    **each(DAMAGED, "no-pixels.png header-checksum.png pixel-checksum.png pixel-flip.png"),
    **each(DAMAGED, "pixel-flip-adler.png text-checksum.png not-deflated.png filter-9.png"),
    **each(DAMAGED, "few-rows.png depth-3.png colour-5.png long-chunk.png no-header.png"),
    **each(WHOLE, "many-chunks.png text-5-mb.png iccp-rubbish.png idat-bomb.png"),
    **each(DAMAGED, "ztxt-bomb.png itxt-bomb.png iccp-bomb.png"),
    # Shapes.
    **each("1x1 rrrr", "dot.png dot.gif dot.bmp dot.webp"),
    "dot.jpg": "1x1 ~rrrr",
    "tall.png": "1x65000 rrbb",
    "flat.png": "65000x1 rgrg",
    "tall.jpg": "1x65000 ~rrbb",
    "flat.bmp": "65000x1 rgrg",
    "tall.webp": "1x16383 rrbb",
    "65535.gif": "1x65535 rrbb",
    # BMP, GIF and WebP.
    **each(WHOLE, "plain.bmp top-down.bmp 4-bit.bmp 8-bit.bmp rle-8.bmp rle-4.bmp 555.bmp 565.bmp"),
    **each(WHOLE, "32-bit.bmp os2.bmp wrong-length.bmp"),
    "1-bit.bmp": "2x2 grrg",
    **each(DAMAGED, "rle-short.bmp jpeg-inside.bmp depth-7.bmp many-colours.bmp"),
    **each(WHOLE, "tiny.gif local-palette.gif small-screen.gif 87a.gif"),
    "no-palette.gif": "2x2 ~kkkk",
    "large-screen.gif": "4x4 rrrr",  # around the frame is the background, the first colour here
    **each(DAMAGED, "no-frame.gif code-size.gif bad-code.gif"),
    "90a.gif": UNKNOWN,
    **each(LARGE, "lossless.webp unknown-chunk.webp"),
    "lossy.webp": "64x64 ~rgbk",
    **each(DAMAGED, "too-long.webp too-short.webp no-picture.webp unknown-codec.webp"),
    # Names and places.
    **dict.fromkeys(NAMES, WHOLE),
    **each(FOLDER, "folder.png to-folder.png"),
    "pipe.png": SPECIAL,
    **each(OUTSIDE, "device.png outside.png parent.png"),
    "dangling.png": MISSING,
    "loop.png": UNOPENED,
    **each(WHOLE, "inside.png target.png"),
    "locked.png": DENIED,
    "sparse.png": TOO_LONG,
    # In place of a file's name. What a data URL says of its kind is not believed.
    **each(WHOLE, "url url-other-type url-unknown-type url-capitals"),
    **each(NO_IMAGE, "url-text-type url-no-type"),
    **each(PAGE, "url-page url-drawing"),
    "url-tiff": UNKNOWN,
    "url-plain": NO_BASE64,
    **each(EMPTY, "url-no-comma url-empty"),
    **each(BAD_BASE64, "url-rubbish url-line-breaks url-cut url-safe-alphabet"),
    "url-cut-whole-bytes": DAMAGED,
    **each(URL, "url-http url-file"),
}
# What the rows of a data file hold.
VALUES = {name: name for name in OUTCOMES} | data_urls()


class Hangs(BaseException):
    """No Exception, which the reader would take for a damaged picture."""


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hangs

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("awkward")
    write(path)
    return path


def outcome(value: str, root: Path) -> Image.Image | str:
    """The picture of a value as rows hold them, or the reason why there is none."""
    try:
        ref = picture(value, root)
        image = ref.load()
    except ImageError as error:
        message, reason = str(error), error.reason
    else:
        assert image.mode == "RGB" and image.size == ref.size() and not image.info
        return image
    assert message.isprintable() and "0x" not in message and str(root) not in message
    return reason


def matches(found: Image.Image | str, wanted: str) -> bool:
    """Whether corners have their letters' colours: exactly, or within what JPEG and WebP blur."""
    if isinstance(found, str):
        return found == wanted
    size, _, letters = wanted.partition(" ")
    if size != f"{found.width}x{found.height}":
        return False
    right, bottom = found.width - 1, found.height - 1
    corners = (found.getpixel(at) for at in ((0, 0), (right, 0), (0, bottom), (right, bottom)))
    allowed = 12 if letters.startswith("~") else 0
    return all(
        letter == "?" or np.abs(np.subtract(corner, COLOURS[letter])).max() <= allowed
        for corner, letter in zip(corners, letters.removeprefix("~"), strict=True)
    )


def test_the_files_are_those_of_the_list(folder: Path, tmp_path: Path) -> None:
    kinds = write(tmp_path / "again")
    names = [name for made in kinds.values() for name in made]
    assert len(kinds) >= 30 and len(names) >= 120 and len(names) == len(set(names))
    assert {*names, *data_urls()} == set(OUTCOMES)
    # The script is deterministic.
    for name in names:
        made = tmp_path / "again" / name
        if made.is_file() and not made.is_symlink() and name not in ("sparse.png", "locked.png"):
            assert made.read_bytes() == (folder / name).read_bytes(), name


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[ROOT] * (name == "locked.png")) for name in OUTCOMES]
)
def test_it_is_a_picture_or_has_a_reason(folder: Path, name: str) -> None:
    found = outcome(VALUES[name], folder)
    assert matches(found, OUTCOMES[name]), f"{found} instead of {OUTCOMES[name]}"


def test_a_wrong_outcome_would_be_seen() -> None:
    red = quarters("rrrr")
    red.putpixel((23, 15), (243, 0, 0))
    assert all(matches(red, wanted) for wanted in ("24x16 ~rrrr", "24x16 rrr?"))
    for wanted in ("24x16 rrrr", "24x16 ~rrrb", "16x24 ~rrrr", EMPTY):
        assert not matches(red, wanted) and not matches(DAMAGED, wanted)


def refused() -> dict[str, str]:
    readable = {"locked.png"} if os.geteuid() == 0 else set()
    return {
        name: reason
        for name, reason in OUTCOMES.items()
        if not reason[0].isdigit() and name not in readable
    }


def write_rows(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    turns = said("<image>\nwhat?", "a picture")
    rows = [{"id": id, "image": VALUES[id], "conversations": turns} for id in OUTCOMES]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_the_command_names_every_refused_file_and_nothing_else(folder: Path) -> None:
    done = CliRunner().invoke(app, ["data", "check", str(write_rows(folder)), "--json"])
    assert done.exit_code == 1 and done.stderr == ""
    report = json.loads(done.stdout)
    assert (report["rows"], report["bad"]) == (len(OUTCOMES), len(refused()))
    listed = {bad["id"]: bad for bad in report["bad_rows"]}
    assert set(listed) == set(refused()) and len(listed) == len(report["bad_rows"])
    for name, reason in refused().items():
        assert listed[name]["reason"].endswith(f" {reason}"), listed[name]
        assert listed[name]["line"] == list(OUTCOMES).index(name) + 1


@pytest.mark.parametrize("warnings", ["error", "always"])
def test_pillow_warns_of_nothing_and_decides_nothing(folder: Path, warnings: str) -> None:
    """Its warnings name no file, and as errors they would refuse good pictures."""
    code = (
        "import sys; from pathlib import Path; from oculi.data.check import check\n"
        "print(*(bad.id for bad in check([Path(sys.argv[1])]).bad_rows), sep='\\n')"
    )
    command = [sys.executable, "-W", warnings, "-c", code, str(write_rows(folder))]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert done.stderr == "" and set(done.stdout.splitlines()) == set(refused())


def test_bytes_in_parquet_that_are_no_picture(folder: Path, tmp_path: Path) -> None:
    """A column of bytes holds files whole; what is in them decides as it does on the disk."""
    files = [name for name in OUTCOMES if (folder / name).is_file()]
    files = [name for name in files if name not in ("sparse.png", "outside.png", "locked.png")]
    values = [(folder / name).read_bytes() for name in files]
    turns = said("<image>\nwhat?", "a picture")
    rows = [
        {"id": name, "images": [{"bytes": data, "path": None}], "conversations": turns}
        for name, data in zip(files, values, strict=True)
    ]
    rows.append(
        {"id": "itself", "images": [{"bytes": b"PAR1", "path": ""}], "conversations": turns}
    )
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    listed = {bad.id: bad.reason for bad in check([path]).bad_rows}
    assert set(listed) == {name for name in files if name in refused()} | {"itself"}
    assert all(listed[name].endswith(f" {refused()[name]}") for name in listed if name != "itself")
    assert listed["itself"].endswith(UNKNOWN)


@pytest.mark.skipif(not OPEN_FILES.is_dir(), reason="no list of open files here")
def test_a_folder_that_was_taken_for_a_picture_is_closed_again(folder: Path) -> None:
    before = len(list(OPEN_FILES.iterdir()))
    for name in ("folder.png", "pipe.png", "sparse.png", "device.png", "bomb.bmp"):
        assert outcome(name, folder) == OUTCOMES[name]
    assert len(list(OPEN_FILES.iterdir())) == before
