"""Samples as rows of a JSON Lines file that training reads: `images` and `messages`.

Pictures that have a file of their own are named, relative to the image root they came from; those
that lay inside a row, a table or an archive become data URLs. `<image>` in a text stays text, because
the pictures are marked by parts.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from oculi import durable
from oculi.data.container import MAX_ROW_BYTES, Row
from oculi.data.forms import KEYS
from oculi.data.images import NO_IMAGE, ImageError, image_bytes
from oculi.data.sample import IMAGE, ImageRef, ImageSource, Message, Sample
from oculi.errors import DataError

# Bytes of a row's pictures that are no files: base64 makes them a third longer, and there are texts.
MAX_EMBEDDED: Final = (MAX_ROW_BYTES - 2**20) // 4 * 3
TOO_LARGE: Final = (  # completes the sentence `image "x.png" ...`
    f"is too large to stand in a row, whose pictures may take {MAX_EMBEDDED // 2**20} MiB; give it a "
    "file of its own"
)
_TAGS = ("stage", "stages")
_TYPES = {b"\xff\xd8\xff": "jpeg", b"\x89PNG": "png", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}


def picture_name(image: ImageSource) -> str | None:
    """The path of a picture that is a file of its own, relative to its root; else None."""
    if not isinstance(image, ImageRef) or image.path is None or image.span is not None:
        return None
    # As text, not as a file: what the names lead to is decided where they are read.
    path = image.path
    if image.root is not None and path.is_absolute():
        path = Path(os.path.relpath(path, os.path.abspath(image.root)))
    return os.path.normpath(path).replace(os.sep, "/")


def picture_key(image: ImageSource) -> str:
    """What tells a picture from others under one root: its file's name, or its bytes.

    Raises:
        DataError: the bytes cannot be had.
    """
    name = picture_name(image)
    if name is None:
        return picture_digest(image)
    return _hash(f"file {name}".encode("utf-8", "surrogateescape"))


def picture_digest(image: ImageSource) -> str:
    """What tells a picture's bytes from others; raises DataError where they cannot be had."""
    return _hash(_bytes(image))


def picture_values(images: Sequence[ImageSource]) -> list[str]:
    """A row's pictures as it names them: paths or data URLs; raises DataError."""
    return [
        found
        if isinstance(found, str)
        else f"data:image/{found[0]};base64,{base64.b64encode(found[1]).decode()}"
        for found in _contents(images)
    ]


def check_pictures(images: Sequence[ImageSource]) -> None:
    """Raise the DataError that `picture_values` would, at less cost."""
    for _ in _contents(images):
        pass


def _contents(images: Sequence[ImageSource]) -> Iterator[str | tuple[str, bytes]]:
    """The name of each picture, or format and bytes of one that is no file of its own."""
    room = MAX_EMBEDDED
    for image in images:
        name = picture_name(image)
        if name is not None:
            yield name
            continue
        data = _bytes(image)
        room -= len(data)
        kind = next((kind for magic, kind in _TYPES.items() if data.startswith(magic)), None)
        if kind is None or room < 0:
            called = image.name if isinstance(image, ImageRef) else ""
            raise ImageError(NO_IMAGE if kind is None else TOO_LARGE, called)
        yield kind, data


def _hash(seen: bytes) -> str:
    return hashlib.blake2b(seen, digest_size=16).hexdigest()


def _bytes(image: ImageSource) -> bytes:
    if not isinstance(image, ImageRef):
        raise DataError("a picture that is drawn cannot be written into a row")
    return image_bytes(image)


def to_row(sample: Sample, extra: Row | None = None) -> Row:
    """A sample as a row of the form `messages`, with what `extra` holds besides.

    Raises:
        DataError: a picture cannot be read, or is too large.
    """
    row: Row = {"id": sample.id}
    if sample.images:
        row["images"] = picture_values(sample.images)
    if sample.modality != IMAGE:
        row["modality"] = sample.modality
    return row | {"messages": [_turn(m) for m in sample.messages]} | (extra or {})


def remarks(row: Row) -> Row:
    """What a row holds besides a sample and can be written as JSON: its tags, and keys of no form."""
    return {
        key: value
        for key, value in row.items()
        if (key in _TAGS or key not in KEYS) and value is not None and _plain(value)
    }


def _plain(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _turn(message: Message) -> dict[str, Any]:
    if all(isinstance(part, str) for part in message.content):
        return {"role": message.role, "content": message.text}
    parts = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
        for part in message.content
    ]
    return {"role": message.role, "content": parts}


def write_rows(out: Path, rows: Iterable[Row]) -> int:
    """Write rows as JSON Lines, the file as a whole; returns how many.

    Raises:
        DataError: a row is longer than what is read back.
        DiskError: the file cannot be written.
    """
    partial, count = out.with_name(out.name + durable.PARTIAL), 0
    with durable.disk_errors(str(out)):
        out.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            for row in rows:
                line = json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass")
                if len(line) > MAX_ROW_BYTES:
                    raise DataError(
                        f"{out}: row {row.get('id')!r} takes over {MAX_ROW_BYTES} bytes"
                    )
                file.write(line + b"\n")
                count += 1
        durable.sync(partial)
        durable.move(partial, out)
    return count


def common_root(roots: Iterable[Path]) -> Path:
    """The one folder where the image paths of several files start.

    Raises:
        DataError: there are several.
    """
    found: Sequence[Path] = list(dict.fromkeys(Path(os.path.abspath(root)) for root in roots))
    if len(found) > 1:
        raise DataError(
            f"image paths start in {found[0]} and in {found[1]}: give the folder above as --image-root "
            "if they are relative to it, or take one file at a time"
        )
    return found[0]


def root_hint(out: Path, root: Path) -> str:
    """What to say where the image paths of `out` do not start in its own folder; else nothing."""
    if os.path.abspath(root) == os.path.abspath(out.parent):
        return ""
    return f"image paths in {out} start in {root}: give it as image_root (--image-root)"
