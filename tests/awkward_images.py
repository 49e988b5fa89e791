"""Files that call themselves pictures, as the web, full disks and enemies make them.

`python tests/awkward_images.py FOLDER` writes them all, the same every time; what becomes of each
is said in `tests/data/test_awkward_images.py`. Pictures that are whole but odd are made in
`odd_images.py`.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

import odd_images
from imagefiles import (
    Files,
    bmp,
    cut,
    encode,
    gif,
    jpeg,
    png,
    quarters,
    segment,
    split,
    webp,
)

# ------------------------------------------------------------------------- no picture at all


def empty() -> Files:
    return {"empty.jpg": b"", "empty.png": b"", "one-byte.png": b"\0", "newline.jpg": b"\n"}


def pages() -> Files:
    return {
        "404.jpg": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "bom.html.jpg": b"\xef\xbb\xbf\r\n <html></html>",
        "drawing.png": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        "denied.jpg": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
        "utf16.html.jpg": "<html></html>".encode("utf-16"),
    }


def documents() -> Files:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(zipfile.ZipInfo("a.png"), png())
    return {
        "pdf.jpg": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n%%EOF\n",
        "zip.jpg": archive.getvalue(),
        "gzip.png": gzip.compress(png(), mtime=0),
        "json.jpg": json.dumps({"error": "rate limit", "image": None}).encode(),
        "text.jpg": b"see attachment",
        "lfs.png": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 165\n",
        "base64.png": base64.b64encode(png()),
        "video.jpg": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(40),
        "parquet.png": b"PAR1" + bytes(64) + b"PAR1",
        "zeros.png": bytes(4096),
        "noise.jpg": np.random.default_rng(0).bytes(4096),
    }


def other_formats() -> Files:
    image = quarters()
    named = {
        "tiff": "TIFF", "ico": "ICO", "ppm": "PPM", "tga": "TGA", "pcx": "PCX", "sgi": "SGI",
        "dds": "DDS", "icns": "ICNS", "qoi": "QOI", "jp2": "JPEG2000", "dib": "DIB", "im": "IM",
    }  # fmt: skip
    made = {f"{stem}.jpg": encode(image, format) for stem, format in named.items()}
    return made | {
        "xbm.png": encode(image.convert("1"), "XBM"),
        "eps.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 16\n%%EndComments\n",
        "psd.jpg": b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 16, 24, 8, 3) + bytes(99),
        "fits.png": b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800),
        "avif.jpg": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(99),
        "heic.jpg": b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + bytes(99),
        "jxl.jpg": b"\xff\x0a" + bytes(99),
        "jpeg2000-stream.jpg": b"\xff\x4f\xff\x51\0\x2f" + bytes(99),
        "wav.webp": b"RIFF\x24\0\0\0WAVEfmt " + bytes(99),
        "bigtiff.jpg": b"II\x2b\0\x08\0\0\0" + bytes(99),
    }


def tiffs() -> Files:
    values = np.array([[0.0, np.nan], [np.inf, -1e30]], np.float32)
    more = [quarters("gggg"), quarters("bbbb")]
    return {
        "float.tiff": encode(Image.fromarray(values), "TIFF"),
        "nan.png": encode(Image.fromarray(values * np.nan), "TIFF"),
        "frames.tif": encode(quarters(), "TIFF", save_all=True, append_images=more),
    }


# ------------------------------------------------------------------------- cut off, or too much


def truncated_png() -> Files:
    data = png()
    head, pixels, _ = map(len, split(data))
    places = {"in-magic": 4, "magic": 8, "in-header": 20, "header": 33, "pixels": head + 20}
    places |= {"checksum": head + pixels - 2, "end": head + pixels, "in-end": head + pixels + 6}
    return cut(data, "png-cut", ".png", **places)


def truncated_jpeg() -> Files:
    data = jpeg()
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    places = {"magic": 3, "in-header": 15, "frame": frame, "scan": scan, "pixels": scan + 60}
    return cut(data, "jpeg-cut", ".jpg", **places, end=len(data) - 2, **{"in-end": len(data) - 1})


def truncated_webp() -> Files:
    data, lossy = webp(), encode(quarters(), "WEBP")
    made = cut(data, "webp-cut", ".webp", magic=4, name=12, header=24, end=len(data) - 4)
    return made | cut(lossy, "webp-cut-lossy", ".webp", half=len(lossy) // 2)


def truncated_gif() -> Files:
    data = gif()
    places = {"magic": 6, "header": 13, "palette": 20, "half": len(data) - 12}
    return cut(data, "gif-cut", ".gif", **places, trailer=len(data) - 1)


def truncated_bmp() -> Files:
    data = encode(quarters(), "BMP")
    places = {"magic": 2, "header": 30, "pixels": 54, "half": 600, "end": len(data) - 1}
    return cut(data, "bmp-cut", ".bmp", **places)


def torn() -> Files:
    """Files that a power cut, a full disk or a broken download left in their full length."""
    data, flat = jpeg(), png()
    scan = data.index(b"\xff\xda") + 60
    return {
        "zero-tail.png": flat[:50] + bytes(len(flat) - 50),
        "zero-tail.jpg": data[:scan] + bytes(len(data) - scan),
        "zero-tail.webp": webp()[:30] + bytes(200),
        "lost-middle.jpg": data[:scan] + b"\xff\xd9",
        "text-mode.png": flat.replace(b"\r\n", b"\n"),
    }


def garbage_behind() -> Files:
    rubbish = b"<html>" + bytes(range(256))
    return {
        "behind.png": png() + rubbish,
        "behind.jpg": jpeg() + rubbish,
        "behind.gif": gif() + rubbish,
        "behind.bmp": encode(quarters(), "BMP") + rubbish,
        "behind.webp": webp() + rubbish,
        "two.jpg": jpeg() + jpeg(quarters("kbgr")),
    }


def garbage_in_front() -> Files:
    return {"newline-first.png": b"\n" + png(), "bom-first.jpg": b"\xef\xbb\xbf" + jpeg()}


def wrong_extension() -> Files:
    return {
        "png.jpg": png(),
        "jpeg.png": jpeg(),
        "gif.jpeg": gif(),
        "webp.jpg": webp(),
        "bmp.png": encode(quarters(), "BMP"),
        "no-extension": png(),
        "png.txt": png(),
    }


def bombs() -> Files:
    wide = bytearray(webp())
    at = wide.index(b"VP8L") + 9
    wide[at : at + 4] = struct.pack("<I", 16383 | 16383 << 14)
    canvas = bytearray(webp(save_all=True, append_images=[quarters("gggg")]))
    at = canvas.index(b"VP8X") + 12
    canvas[at : at + 6] = b"\xfe\x3f\0" * 2
    frame = jpeg().index(b"\xff\xc0") + 5
    return {
        "bomb-7000.png": png(size=(7000, 7000)),
        "bomb-60000.png": png(size=(60_000, 60_000)),
        "bomb-31-bit.png": png(size=(2**31 - 1, 2**31 - 1)),
        "bomb.jpg": jpeg()[:frame] + b"\xff" * 4 + jpeg()[frame + 4 :],
        "bomb.gif": gif()[:6] + b"\xff\xff\xff\xff" + gif()[10:],
        "bomb.bmp": bmp(b"", 24, size=(20_000, 20_000)),
        "bomb.webp": bytes(wide),
        "bomb-canvas.webp": bytes(canvas),
    }


def zero_sides() -> Files:
    frame = b"\xff\xd8" + segment(0xC0, b"\x08\0\0\0\x10\1\1\x11\0")
    return {
        "zero.png": png(size=(0, 2)),
        "zero.gif": b"GIF89a" + bytes(7) + b";",
        "zero.bmp": bmp(b"", 24, size=(2, 0)),
        "zero.jpg": frame + bytes(99),
    }


def scan_bomb() -> Files:
    """5,000 passes over 40 million pixels in 330 kB, minutes to decode."""
    side, scans = 6300, 5000
    blocks = ((side + 7) // 8) ** 2
    runs = "0" + "1" * 14  # of 32,767 blocks in which nothing changes
    bits = runs * -(-blocks // 32767)
    bits += "1" * (-len(bits) % 8)
    skip = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    tables = segment(0xDB, b"\0" + b"\1" * 64) + segment(0xC4, b"\0\1" + bytes(15) + b"\0")
    tables += segment(0xC4, b"\x10\1" + bytes(15) + b"\xe0")
    frame = segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    first = segment(0xDA, b"\1\1\0\0\0\0") + bytes((blocks + 7) // 8)
    rest = (segment(0xDA, b"\1\1\0\1\x3f\0") + skip) * scans
    return {"scans.jpg": b"\xff\xd8" + tables + frame + first + rest + b"\xff\xd9"}


# ------------------------------------------------------------------------- where they lie

NAMES = (
    "a space.png", " leading.png", "trailing .png", "naïve ☂ 图.png", "nai\u0308ve.png", "🦆.png",
    "new\nline.png", "tab\t.png", "\x1b[2Jescape.png", 'quote".png', "percent%20.png", "-dash.png",
    ".hidden.png", "$(x);&.png", "back\\slash.png", "dots..png", "con.png", "x" * 200 + ".png",
)  # fmt: skip


def names() -> Files:
    return dict.fromkeys(NAMES, png())


def no_files(folder: Path) -> list[str]:
    """What has the name of a picture and is no file, or one that lies elsewhere."""
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    links = {
        "device.png": os.devnull,
        "outside.png": "/etc/passwd",
        "parent.png": "..",
        "dangling.png": "nothing.png",
        "loop.png": "loop.png",
        "to-folder.png": "folder.png",
        "inside.png": "target.png",
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    (folder / "target.png").write_bytes(png())
    (folder / "locked.png").write_bytes(png())
    (folder / "locked.png").chmod(0)
    with (folder / "sparse.png").open("wb") as file:
        file.truncate(2**28 + 1)
    return ["folder.png", "pipe.png", *links, "target.png", "locked.png", "sparse.png"]


def data_urls() -> dict[str, str]:
    """By name; a row of data holds them in place of a file's name."""
    whole = base64.b64encode(png()).decode()
    return {
        "url": f"data:image/png;base64,{whole}",
        "url-other-type": f"data:image/jpeg;base64,{whole}",
        "url-unknown-type": f"data:image/x;charset=utf-8;base64,{whole}",
        "url-capitals": f"DATA:IMAGE/PNG;BASE64,{whole}",
        "url-text-type": f"data:text/plain;base64,{whole}",
        "url-no-type": f"data:;base64,{whole}",
        "url-page": f"data:image/png;base64,{base64.b64encode(b'<html>').decode()}",
        "url-drawing": f"data:image/svg+xml;base64,{base64.b64encode(b'<svg/>').decode()}",
        "url-tiff": f"data:image/png;base64,{base64.b64encode(b'II*').decode()}",
        "url-plain": "data:image/png,%89PNG",
        "url-no-comma": "data:image/png;base64",
        "url-empty": "data:image/png;base64,",
        "url-rubbish": "data:image/png;base64,***",
        "url-line-breaks": f"data:image/png;base64,{whole[:40]}\n{whole[40:]}",
        "url-cut": f"data:image/png;base64,{whole[:41]}",
        "url-cut-whole-bytes": f"data:image/png;base64,{whole[:80]}",
        "url-safe-alphabet": "data:image/png;base64,iVBORw0KGgo_-A==",
        "url-http": "https://example.org/a.png",
        "url-file": "file:///etc/passwd",
    }


KINDS: dict[str, Callable[[], Files]] = {
    make.__name__.replace("_", " "): make
    for make in (
        empty, pages, documents, other_formats, tiffs,
        truncated_png, truncated_jpeg, truncated_webp, truncated_gif, truncated_bmp, torn,
        garbage_behind, garbage_in_front, wrong_extension, bombs, zero_sides, scan_bomb,
        odd_images.exif_orientation, odd_images.broken_exif, odd_images.four_components,
        odd_images.palettes, odd_images.alpha, odd_images.few_bits, odd_images.sixteen_bits,
        odd_images.interlaced, odd_images.animated, odd_images.jpeg_coding,
        odd_images.jpeg_headers, odd_images.png_chunks, odd_images.png_texts,
        odd_images.extreme_shapes, odd_images.bmp_kinds, odd_images.gif_kinds,
        odd_images.webp_kinds, names,
    )
}  # fmt: skip


def write(folder: Path) -> dict[str, list[str]]:
    """Make all files in an empty or new folder; return their names by kind."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for kind, make in KINDS.items():
        files = make()
        for name, data in files.items():
            with (folder / name).open("xb") as file:  # no two of one name
                file.write(data)
        made[kind] = list(files)
    return made | {"no files": no_files(folder)}


if __name__ == "__main__":
    for kind, found in write(Path(sys.argv[1])).items():
        print(f"{kind}: {', '.join(map(ascii, found))}")
