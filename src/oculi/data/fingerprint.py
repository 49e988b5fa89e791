"""A picture in 448 bytes: what `oculi data overlap` compares.

Two digests say whether two pictures are the same file or the same pixels. The look, a thumbnail of
16 x 16 in luma and 8 x 8 in chroma, says how far two pictures are from each other; a hash of 128
bits finds those worth that comparison (`oculi.data.overlap_near`).

The hash is a perceptual hash on the discrete cosine transform (C. Zauner, Implementation and
Benchmarking of Perceptual Image Hash Functions, 2010) with one change. It takes the sign of the 64
lowest frequencies; in a symmetric picture half of those are zero, and their signs are noise. Here
each has two bits, "above the margin" and "below minus the margin": what is about zero stays 0, 0.

Shapes: H, W = 16, 16 luma; P pictures.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oculi.data.images import MAX_BYTES, TOO_LONG, ImageError, open_file
from oculi.data.sample import ImageRef, ImageSource
from oculi.data.workers import _start
from oculi.errors import DataError

_SIDE, _LUMA, _CHROMA = 32, 16, 8
# In grey levels of the luma's orthonormal transform. JPEG at quality 30 moves a frequency by 2 to
# 4; the frequencies of pictures are tens to hundreds.
_MARGIN: Final = 16.0

RECORD: Final = np.dtype(
    [
        ("file", "<u8", 2),  # first halves of SHA-256
        ("pixels", "<u8", 2),
        ("look", "<u8", 2),
        ("hash", "<u8", 2),
        ("luma", "u1", (_LUMA, _LUMA)),
        ("chroma", "u1", (_CHROMA, _CHROMA, 2)),
    ]
)

# ITU-R BT.601, as JPEG has it: luma, blue and red difference, from red, green and blue.
_YCC: Final = np.array(
    [[0.299, -0.168736, 0.5], [0.587, -0.331264, -0.418688], [0.114, 0.5, -0.081312]], np.float32
)
# Read in this process before others are started: small sets need none.
_ALONE: Final = 8


def fingerprint(source: ImageSource) -> bytes:
    """The `RECORD` of a picture; raises DataError when it cannot be read."""
    data = _content(source) if isinstance(source, ImageRef) else None
    if data is not None:
        assert isinstance(source, ImageRef)
        name = source.name or ("" if source.path is None else str(source.path))
        source = ImageRef(data=data, name=name)
    rgb = source.load()
    size = f"{rgb.width} {rgb.height}\n".encode()
    pixels = hashlib.sha256(size + rgb.tobytes()).digest()[:16]
    luma, chroma = look(rgb)
    return b"".join(
        (
            pixels if data is None else hashlib.sha256(data).digest()[:16],
            pixels,
            hashlib.sha256(luma.tobytes() + chroma.tobytes()).digest()[:16],
            perceptual_hash(luma),
            luma.tobytes(),
            chroma.tobytes(),
        )
    )


def _content(ref: ImageRef) -> bytes:
    """The encoded bytes of a picture, read once for digest and decoding."""
    if ref.data is not None:
        return ref.data
    assert ref.path is not None
    name = ref.name or str(ref.path)
    if ref.span is None:
        with open_file(ref.path, ref.root, name) as file:
            return file.read()
    offset, length = ref.span
    if length > MAX_BYTES:
        raise ImageError(TOO_LONG, name)
    with open_file(ref.path, ref.root, name, limit=None) as file:
        file.seek(offset)
        return file.read(length)


def look(rgb: Image.Image) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Luma [16, 16] and chroma [8, 8, 2] (128 is grey) of a picture squeezed into a square.

    The triangle filter is needed: Pillow's box takes whole pixels, so that a picture of 72 pixels
    and its copy of 36 differ more than two pictures do.
    """
    small = rgb.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    ycc = np.asarray(small, dtype=np.float32) @ _YCC
    luma = _pool(ycc[..., :1], _LUMA)[..., 0]
    chroma = _pool(ycc[..., 1:], _CHROMA) + 128
    return _bytes(luma), _bytes(chroma)


def _pool(values: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Means of cells: [32, 32, C] to [side, side, C]."""
    step = _SIDE // side
    return values.reshape(side, step, side, step, -1).mean((1, 3))


def _bytes(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(values).clip(0, 255).astype(np.uint8)


def perceptual_hash(luma_HW: NDArray[np.uint8]) -> bytes:
    """16 bytes from a luma [16, 16]; bytes 2b and 2b + 1 are band b, frequencies b, b + 8, ..."""
    basis, chosen = _transform()
    frequencies = (basis @ luma_HW.astype(np.float32) @ basis.T).reshape(-1)[chosen]
    bits = np.stack([frequencies > _MARGIN, frequencies < -_MARGIN], axis=1)
    return np.packbits(bits.reshape(8, 8, 2).transpose(1, 0, 2)).tobytes()


@cache
def _transform() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The orthonormal DCT-II of length 16, and the 64 lowest frequencies but the mean."""
    n = np.arange(_LUMA)
    basis = np.cos(np.pi * (2 * n[None] + 1) * n[:, None] / (2 * _LUMA)) * np.sqrt(2 / _LUMA)
    basis[0] /= np.sqrt(2)
    grid = sorted(itertools.product(n.tolist(), repeat=2), key=lambda uv: (sum(uv), uv))[1:65]
    return basis.astype(np.float32), np.array([u * _LUMA + v for u, v in grid])


def fingerprints(sources: Sequence[ImageSource]) -> list[bytes | str]:
    """The records of pictures, and in place of those that cannot be read what is wrong."""
    return [_attempt(source) for source in sources]


def _attempt(source: ImageSource) -> bytes | str:
    try:
        return fingerprint(source)
    except DataError as error:
        return str(error)


def fingerprint_all(
    pieces: Iterable[Sequence[ImageSource]], workers: int
) -> Iterator[list[bytes | str]]:
    """`fingerprints` of each piece, in order; a few pieces for each worker are in memory at a time.

    Args:
        workers: processes; 1 or less does it all in this one.

    Raises:
        DataError: a worker was killed.
    """
    waiting = iter(pieces)
    yield from map(fingerprints, itertools.islice(waiting, None if workers <= 1 else _ALONE))
    first = next(waiting, None)
    if first is None:
        return
    with ProcessPoolExecutor(workers, initializer=_start, initargs=(None,)) as pool:
        running: deque[Future[list[bytes | str]]] = deque()
        try:
            for piece in itertools.chain([first], waiting):
                running.append(pool.submit(fingerprints, piece))
                if len(running) >= 3 * workers:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        except BrokenProcessPool:
            raise DataError(
                "a worker was killed, perhaps for want of memory: give fewer --workers"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
