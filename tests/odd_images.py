"""Pictures that most readers get wrong: turned, transparent, deep, coded in ways seldom seen.

Each function makes the files of one kind; they are among those of `awkward_images.py`.
"""

from __future__ import annotations

import struct
import zlib

from PIL import Image, ImageChops, ImageOps

from imagefiles import (
    MAGIC,
    Files,
    bmp,
    chunk,
    encode,
    exif,
    gif,
    jpeg,
    pixel,
    png,
    quarters,
    segment,
    split,
    tiff,
    tiny_gif,
    webp,
    with_segment,
)

GREY_16 = struct.pack(">4H", 0, 0x5555, 0xAAAA, 0xFFFF)


def twice(row: bytes) -> bytes:
    """8-bit values as 16-bit ones."""
    return b"".join(bytes([value, value]) for value in row)


def exif_orientation() -> Files:
    made = {f"exif-{number}.jpg": exif(tiff(number)) for number in range(1, 9)}
    head, pixels, end = split(png())
    return made | {
        "exif-6-big-endian.jpg": exif(tiff(6, ">")),
        "exif-6.png": head + chunk(b"eXIf", tiff(6)) + pixels + end,
        "exif-8-behind.png": head + pixels + chunk(b"eXIf", tiff(8)) + end,
        "exif-3.webp": webp(exif=b"Exif\0\0" + tiff(3)),
    }


def broken_exif() -> Files:
    """None of them may cost the picture; what cannot be read turns nothing."""
    head, pixels, end = split(png())
    return {
        "exif-0.jpg": exif(tiff(0)),
        "exif-9.jpg": exif(tiff(9)),
        "exif-as-text.jpg": exif(tiff(6, kind=2)),
        "exif-rubbish.jpg": exif(b"rubbish"),
        "exif-empty.jpg": exif(b""),
        "exif-cut.jpg": exif(tiff(6)[:15]),
        "exif-far.jpg": exif(b"II*\0\xff\xff\xff\x7f"),
        "exif-loop.jpg": exif(tiff(6, next_=8)),
        "exif-rubbish.png": head + chunk(b"eXIf", b"rubbish") + pixels + end,
        "mpf-rubbish.jpg": with_segment(0xE2, b"MPF\0II*\0\x08\0\0\0" + b"\xff" * 30),
        "icc-rubbish.jpg": with_segment(0xE2, b"ICC_PROFILE\0\1\1rubbish"),
    }


def four_components() -> Files:
    cmyk = jpeg(quarters().convert("CMYK"))
    adobe = cmyk.index(b"\xff\xee")
    # Ink as the luma and chroma of what it leaves; Pillow turns all four around when it writes.
    luma = ImageOps.invert(quarters()).convert("YCbCr").split()
    bands = [*map(ImageChops.invert, luma), Image.new("L", (24, 16))]
    ycck = bytearray(jpeg(Image.merge("CMYK", bands)))
    ycck[ycck.index(b"\xff\xee") + 15] = 2
    return {
        "cmyk.jpg": cmyk,
        "cmyk-unmarked.jpg": cmyk[:adobe] + cmyk[adobe + 16 :],
        "ycck.jpg": bytes(ycck),
    }


def palettes() -> Files:
    rows = (b"\0\1", b"\2\3")
    colours, two = chunk(b"PLTE", pixel("rgbk")), chunk(b"PLTE", pixel("rg"))
    clear = chunk(b"tRNS", b"\xff\xff\xff\0")
    return {
        "palette.png": png(rows, colour=3, before=colours),
        "palette-clear.png": png(rows, colour=3, before=colours + clear),
        "palette-alpha.png": png(
            rows, colour=3, before=colours + chunk(b"tRNS", b"\0\xff\xff\x80")
        ),
        "palette-2-bit.png": png((b"\x10", b"\xb0"), depth=2, colour=3, before=colours),
        "palette-4-bit.png": png((b"\x01", b"\x23"), depth=4, colour=3, before=colours + clear),
        "palette-1-bit.png": png((b"\x40", b"\x80"), depth=1, colour=3, before=two),
        "palette-none.png": png(rows, colour=3),
        "palette-short.png": png(rows, colour=3, before=two),
        "palette-late.png": png(rows, colour=3, after=colours),
        "clear.gif": gif(transparency=0),
    }


def alpha() -> Files:
    rows = (b"\xff\0\0\0\0\xff\0\xff", b"\0\0\xff\xff\0\0\0\x80")
    rgba = quarters().convert("RGBA")
    rgba.putalpha(quarters("kwww").convert("L"))
    grey = (b"\0\0\x55\xff", b"\xaa\xff\0\x80")
    return {
        "rgba.png": png(rows, colour=6),
        "rgba-16.png": png(map(twice, rows), depth=16, colour=6),
        "rgba.webp": webp(rgba),
        "rgba-lossy.webp": encode(rgba, "WEBP", quality=95),
        "grey-alpha.png": png(grey, colour=4),
        "grey-alpha-16.png": png(map(twice, grey), depth=16, colour=4),
        "rgb-key.png": png(before=chunk(b"tRNS", struct.pack(">3H", 0, 255, 0))),
    }


def few_bits() -> Files:
    two, four = (b"\x10", b"\xb0"), (b"\x05", b"\xaf")
    return {
        "1-bit.png": png((b"\x40", b"\x80"), depth=1, colour=0),
        "1-bit-key.png": png((b"\x40", b"\x80"), depth=1, colour=0, before=key(0)),
        "2-bit.png": png(two, depth=2, colour=0),
        "2-bit-key.png": png(two, depth=2, colour=0, before=key(1)),
        "4-bit.png": png(four, depth=4, colour=0),
        "4-bit-key.png": png(four, depth=4, colour=0, before=key(10)),
        "8-bit-key.png": png((b"\0\x55", b"\xaa\xff"), colour=0, before=key(0)),
        "1-bit.gif": encode(quarters("kwwk").convert("1"), "GIF"),
        "grey.jpg": jpeg(quarters("kdlw").convert("L")),
    }


def key(*values: int) -> bytes:
    return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


def sixteen_bits() -> Files:
    grey, rgb = (GREY_16[:4], GREY_16[4:]), (twice(pixel("rg")), twice(pixel("bk")))
    near = (b"\0\1\0\2\0\3\0\4\0\5\0\6", rgb[1])
    return {
        "grey-16.png": png(grey, depth=16, colour=0),
        "grey-16-key.png": png(grey, depth=16, colour=0, before=key(0x5555)),
        "grey-16-near-key.png": png(grey, depth=16, colour=0, before=key(0x5554)),
        "rgb-16.png": png(rgb, depth=16),
        "rgb-16-key.png": png(rgb, depth=16, before=key(0, 0xFFFF, 0)),
        "rgb-16-key-low.png": png(near, depth=16, before=key(1, 2, 3)),
    }


def interlaced() -> Files:
    passes = (pixel("r"), pixel("g"), pixel("bk"))
    whole = png(passes, interlace=1)
    odd = (pixel("r"), pixel("b"), pixel("g"), pixel("w"), pixel("kk"))  # the last row comes early
    # Seven passes have more rows than the picture, and each begins with a byte of its own.
    grey = [
        b"\xaa" * columns
        for columns, rows in ((1, 4), (2, 6), (4, 12), (8, 8))
        for _ in range(rows)
    ]
    head, pixels, _ = split(whole)
    return {
        "interlaced.png": whole,
        "interlaced-cut.png": head + pixels[:25],
        "interlaced-odd.png": png(odd, (2, 3), interlace=1),
        "interlaced-odd-short.png": png(odd[:4], (2, 3), interlace=1),
        "interlaced-short.png": png(passes[:1], interlace=1),
        "interlaced-grey.png": png(grey, (8, 16), colour=0, interlace=1),
        "interlaced-row-short.png": png(grey[:-1], (8, 16), colour=0, interlace=1),
        "interlaced.gif": gif(interlace=1),
        "flat.gif": gif(interlace=0),
    }


def animated() -> Files:
    more = {"save_all": True, "append_images": [quarters("wwww"), quarters("kkkk")]}
    head, pixels, end = split(png())
    return {
        "animated.gif": gif(**more, duration=100, loop=0),
        "animated.webp": webp(**more),
        "animated.png": encode(quarters(), "PNG", **more),
        "animated-behind.png": encode(quarters(), "PNG", **more, default_image=True),
        "no-frames.png": head + chunk(b"acTL", bytes(8)) + pixels + end,
        "many-frames.png": head + chunk(b"acTL", b"\xff" * 8) + pixels + end,
        "stereo.mpo": encode(quarters(), "MPO", quality=95, subsampling=0, **more),
    }


def jpeg_coding() -> Files:
    data, waves = jpeg(), jpeg(progressive=True)
    scans = [at for at in range(len(waves)) if waves.startswith(b"\xff\xda", at)]
    return {
        "progressive.jpg": waves,
        "progressive-cut.jpg": waves[: scans[4]],
        "progressive-early-end.jpg": waves[: scans[4]] + b"\xff\xd9",
        "restarts.jpg": jpeg(restart_marker_blocks=1),
        "rgb.jpg": jpeg(keep_rgb=True),
        "chroma-420.jpg": jpeg(subsampling=2),
        "fill-bytes.jpg": data[:2] + b"\xff" * 9 + data[2:],
        "comment.jpg": with_segment(0xFE, b"\xff\xd9" * 30_000),
        "no-jfif.jpg": data[:2] + data[20:],
        "thumbnail.jpg": with_segment(0xE1, b"Exif\0\0" + tiff(1) + jpeg(quarters("wwww"))),
    }


def jpeg_headers() -> Files:
    """Codings that are refused, and frames that cannot be."""
    data = jpeg()
    frame, tables = data.index(b"\xff\xc0"), data.index(b"\xff\xc4")
    scan = data.index(b"\xff\xda")
    kinds = {"lossless": 0xC3, "hierarchical": 0xC5, "arithmetic-lossless": 0xCB, "jpeg-ls": 0xF7}
    made = {
        f"{name}.jpg": data[: frame + 1] + bytes([kind]) + data[frame + 2 :]
        for name, kind in kinds.items()
    }
    two = segment(0xC0, b"\x08\0\x10\0\x18\2\1\x11\0\2\x11\0")
    return made | {
        "arithmetic.jpg": data[:frame] + b"\xff\xc9" + data[frame + 2 : frame + 19] + bytes(40),
        "12-bit.jpg": data[: frame + 4] + b"\x0c" + data[frame + 5 :],
        "two-components.jpg": data[:frame] + two + data[tables:],
        "no-frame.jpg": data[:frame] + data[tables:],
        "no-tables.jpg": data[:tables] + data[scan:],
        "no-quantizer.jpg": data[:20] + data[frame:],
        "long-segment.jpg": data[:4] + b"\xff\xff" + data[6:],
        "no-height.jpg": data[: frame + 5] + b"\0\0" + data[frame + 7 :],
    }


def png_chunks() -> Files:
    head, pixels, end = split(png())
    crooked = bytearray(pixels)
    crooked[-1] ^= 1
    # A bit of the deflated pixels, with a checksum made for it and with the old one.
    body = zlib.compress(b"\0" + pixel("rg") + b"\0" + pixel("bk"), 0)
    flipped = bytearray(body)
    flipped[9] ^= 0x80
    idat = chunk(b"IDAT", body)
    text = bytearray(chunk(b"tEXt", b"Title\0x"))
    text[-1] ^= 1
    filters = zlib.compress(b"\x09" + pixel("rg") + b"\0" + pixel("bk"))
    pieces = b"".join(chunk(b"IDAT", pixels[8 + i : 9 + i]) for i in range(len(pixels) - 12))
    return {
        "no-end.png": head + pixels,
        "no-pixels.png": head + end,
        "header-checksum.png": head[:-1] + bytes([head[-1] ^ 1]) + pixels + end,
        "pixel-checksum.png": head + bytes(crooked) + end,
        "pixel-flip.png": head + idat.replace(body, bytes(flipped)) + end,
        "pixel-flip-adler.png": head + chunk(b"IDAT", bytes(flipped)) + end,
        "text-checksum.png": head + bytes(text) + pixels + end,
        "not-deflated.png": head + chunk(b"IDAT", b"rubbish" * 9) + end,
        "filter-9.png": head + chunk(b"IDAT", filters) + end,
        "bytewise.png": head + pieces + end,
        "empty-idat.png": head + chunk(b"IDAT") + pixels + end,
        "few-rows.png": png((pixel("rg"),)),
        "many-rows.png": png((pixel("rg"), pixel("bk"), *[pixel("ww")] * 9)),
        "unknown-critical.png": head + chunk(b"ABCD", b"?") + pixels + end,
        "depth-3.png": png(depth=3),
        "colour-5.png": png(colour=5),
        "long-chunk.png": head + b"\x7f\xff\xff\xffIDAT" + pixels[8:] + end,
        "no-header.png": MAGIC + pixels + end,
        "many-chunks.png": head + chunk(b"teSt") * 5000 + pixels + end,
    }


def png_texts() -> Files:
    """Text and profiles that blow up; what is as long as it looks may stay."""
    head, pixels, end = split(png())
    blown = zlib.compress(bytes(20_000_000))
    xmp = b"XML:com.adobe.xmp\0\1\0\0\0" + blown
    return {
        "text-5-mb.png": head + chunk(b"tEXt", b"Comment\0" + b"a" * 5_000_000) + pixels + end,
        "ztxt-bomb.png": head + chunk(b"zTXt", b"Comment\0\0" + blown) + pixels + end,
        "itxt-bomb.png": head + chunk(b"iTXt", xmp) + pixels + end,
        "iccp-bomb.png": head + chunk(b"iCCP", b"ICC\0\0" + blown) + pixels + end,
        "iccp-rubbish.png": head + chunk(b"iCCP", b"ICC\0\0rubbish") + pixels + end,
        "idat-bomb.png": png((pixel("rg"), pixel("bk"), bytes(20_000_000))),
    }


def extreme_shapes() -> Files:
    dot, tall, flat = (
        quarters("rrrr", 1, 1),
        quarters("rrbb", 1, 65_000),
        quarters("rgrg", 65_000, 1),
    )
    return {
        "dot.png": encode(dot, "PNG"),
        "dot.gif": encode(dot, "GIF"),
        "dot.bmp": encode(dot, "BMP"),
        "dot.webp": webp(dot),
        "dot.jpg": jpeg(dot),
        "tall.png": encode(tall, "PNG"),
        "flat.png": encode(flat, "PNG"),
        "tall.jpg": jpeg(tall),
        "flat.bmp": encode(flat, "BMP"),
        "tall.webp": webp(quarters("rrbb", 1, 16_383)),
        "65535.gif": encode(quarters("rrbb", 1, 65_535), "GIF"),
    }


def bmp_kinds() -> Files:
    table = b"".join(bytes([*pixel(colour)[::-1], 0]) for colour in "rgbk")
    rows = b"".join(pixel(pair[0])[::-1] + pixel(pair[1])[::-1] + b"\0\0" for pair in ("bk", "rg"))
    four = b"".join(pixel(colour)[::-1] + b"\0" for colour in "bkrg")
    five = struct.pack("<4H", 0x1F, 0, 0x7C00, 0x3E0)
    six = struct.pack("<4H", 0x1F, 0, 0xF800, 0x7E0)
    masks = struct.pack("<3I", 0xF800, 0x7E0, 0x1F)
    old = struct.pack("<2sIHHIIHHHH", b"BM", 42, 0, 0, 26, 12, 2, 2, 1, 24)
    plain = bmp(rows, 24)
    return {
        "plain.bmp": plain,
        "top-down.bmp": bmp(rows[8:] + rows[:8], 24, size=(2, -2)),
        "4-bit.bmp": bmp(b"\x23\0\0\0\x01\0\0\0", 4, table, colours=4),
        "8-bit.bmp": bmp(b"\2\3\0\0\0\1\0\0", 8, table, colours=4),
        "1-bit.bmp": bmp(b"\x40\0\0\0\x80\0\0\0", 1, table[:8], colours=2),
        "rle-8.bmp": bmp(b"\1\2\1\3\0\0\1\0\1\1\0\1", 8, table, compression=1, colours=4),
        "rle-4.bmp": bmp(b"\2\x23\0\0\2\x01\0\1", 4, table, compression=2, colours=4),
        "rle-short.bmp": bmp(b"\1\2\0\1", 8, table, compression=1, colours=4),
        "555.bmp": bmp(five, 16),
        "565.bmp": bmp(six, 16, compression=3, masks=masks),
        "32-bit.bmp": bmp(four, 32),
        "os2.bmp": old + rows,
        "wrong-length.bmp": plain[:2] + b"\xff\xff\xff\x7f" + plain[6:],
        "jpeg-inside.bmp": bmp(jpeg(), 24, compression=4),
        "depth-7.bmp": bmp(rows, 7),
        "many-colours.bmp": bmp(rows, 8, colours=2**31),
    }


def gif_kinds() -> Files:
    return {
        "tiny.gif": tiny_gif(),
        "local-palette.gif": tiny_gif(pixel("wwww"), local=pixel("rgbk")),
        "no-palette.gif": tiny_gif(b""),
        "small-screen.gif": tiny_gif(screen=(1, 1)),
        "large-screen.gif": tiny_gif(screen=(4, 4)),
        "no-frame.gif": tiny_gif()[:25] + b";",
        "code-size.gif": tiny_gif(code_size=13),
        "bad-code.gif": tiny_gif(indices=(7, 7, 7, 7)),
        "87a.gif": tiny_gif().replace(b"89a", b"87a"),
        "90a.gif": tiny_gif().replace(b"89a", b"90a"),
    }


def webp_kinds() -> Files:
    data = webp()
    size = int.from_bytes(data[4:8], "little")
    flags = b"\x10\0\0\0" + struct.pack("<I", 23)[:3] + struct.pack("<I", 15)[:3]
    extra = b"ABCD\x04\0\0\0rest"
    lone = b"WEBPVP8X" + struct.pack("<I", 10) + flags
    return {
        "lossless.webp": data,
        "lossy.webp": encode(quarters(width=64, height=64), "WEBP", quality=95),
        "too-long.webp": data[:4] + struct.pack("<I", size + 1000) + data[8:],
        "too-short.webp": data[:4] + struct.pack("<I", size // 2) + data[8:],
        "no-picture.webp": b"RIFF" + struct.pack("<I", len(lone)) + lone,
        "unknown-chunk.webp": data[:4] + struct.pack("<I", size + 12) + data[8:] + extra,
        "unknown-codec.webp": data.replace(b"VP8L", b"VP9 "),
    }
