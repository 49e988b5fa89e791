"""The pictures to ask about, from data files or a folder, and as they are sent."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from PIL import Image

from oculi.data.formats import BadRow, FileScan
from oculi.data.forms import find_form
from oculi.data.grouped import PICTURES
from oculi.data.kinds import find_files
from oculi.data.rowfile import common_root, picture_key
from oculi.data.sample import IMAGE, ImageRef, ImageSource, Sample
from oculi.errors import DataError

_QUALITY: Final = 92  # of the JPEG that is sent; letters stay sharp


@dataclass(frozen=True, slots=True)
class Item:
    """A picture, and what its row says about it.

    Attributes:
        key: names the picture in the records.
        id: of the row; pictures after the first one of a row have a number behind it.
        image: not read yet.
        question: of a row with one picture and one turn; else empty.
        text: the row's answers.
        place: file and line.
        modality: of what the picture shows, as its row says.
        digest: of the bytes that are asked about; empty until then.
    """

    key: str
    id: str
    image: ImageSource
    question: str = ""
    text: str = ""
    place: str = ""
    modality: str = IMAGE
    digest: str = ""


@dataclass
class Pictures:
    """The pictures of a file, a pattern or a folder, each once, in order; iterating reads anew.

    Rows need not end with an answer, and bad ones are left out and noted in `bad`. A folder without
    data files means the pictures in it and below it; texts beside them are not read.

    Attributes:
        path, image_root, form: as for `oculi data check`.
        limit: only the first so many; None: all.
        root: where image paths start.
        repeated: pictures that were there before, counted by the last pass.
        done, size: how far a pass is, in bytes or files.
        bad: bad rows of the last pass.

    Raises:
        DataError: nothing can be read there, or image paths start in several folders.
    """

    path: Path
    image_root: Path | None = None
    form: str | None = None
    limit: int | None = None
    root: Path = field(init=False)
    repeated: int = field(init=False, default=0)
    done: int = field(init=False, default=0)
    size: int = field(init=False, default=0)
    bad: list[BadRow] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        if self.form is not None:
            find_form(self.form)
        self._files = find_files(self.path)
        self._folder = self._files == [self.path] and self.path.is_dir()
        self.root = self.path if self._folder else common_root(scan.root for scan in self._scans())

    def _scans(self) -> Iterator[FileScan]:
        for file in self._files:
            yield FileScan(file, self.image_root, form=self.form, for_training=False)

    def __iter__(self) -> Iterator[Item]:
        self.bad, self.repeated, seen = [], 0, set[str]()
        for item in self._in_folder() if self._folder else self._in_rows():
            if item.key in seen:
                self.repeated += 1
                continue
            if len(seen) == self.limit:
                return
            seen.add(item.key)
            yield item

    def _in_rows(self) -> Iterator[Item]:
        scans, before = list(self._scans()), 0
        self.size = sum(scan.size for scan in scans)
        for scan in scans:
            for found in scan:
                self.done = before + scan.done
                if isinstance(found, BadRow):
                    self.bad.append(found)
                    continue
                ref, sample = found
                place = f"{scan.path}:{ref.line}"
                try:
                    yield from _items(sample, place)
                except DataError as error:
                    self.bad.append(BadRow(sample.id, ref.line, str(error), str(scan.path)))
            scan.container.close()
            before += scan.size

    def _in_folder(self) -> Iterator[Item]:
        paths = list(_paths(self.path))
        self.size = len(paths)
        if not paths:
            raise DataError(f"{self.path}: holds no pictures and no data files")
        for self.done, path in enumerate(paths, start=1):
            image = ImageRef(path=path, root=self.path)
            place = str(self.path / path)
            yield Item(picture_key(image), str(path.with_suffix("")), image, place=place)


def _items(sample: Sample, place: str) -> Iterator[Item]:
    asked = [m.text.strip() for m in sample.messages if m.role == "user"]
    text = "\n".join(m.text for m in sample.messages if m.role == "assistant")
    question = asked[0] if len(asked) == len(sample.images) == 1 else ""
    for number, image in enumerate(sample.images, start=1):
        id = sample.id if number == 1 else f"{sample.id}-{number}"
        yield Item(picture_key(image), id, image, question, text, place, sample.modality)


def _paths(root: Path) -> Iterator[Path]:
    """Pictures by name, those of a folder before those below it; links to folders are not followed."""
    for folder, below, names in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(names):
            if name.rpartition(".")[2].lower() in PICTURES and not name.startswith("."):
                yield Path(os.path.relpath(os.path.join(folder, name), root))


def sent_size(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """Width and height in pixels as they are sent: the longest side at most `max_side`."""
    scale = min(1.0, max_side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def data_url(image: ImageSource, max_side: int) -> str:
    """A picture as it is sent: upright, RGB, no larger than asked for, and without its metadata.

    What a camera notes beside the pixels (place, owner) is nobody's business.

    Raises:
        DataError: it cannot be read.
    """
    picture = image.load()
    picture = picture.resize(sent_size(picture.size, max_side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _tiles(width: int, height: int) -> int:
    """GPT-4o, detail "high": at most 2048 x 2048, the shorter side at most 768, tiles of 512.

    https://platform.openai.com/docs/guides/images-vision, "Calculating costs": 85 + 170 a tile.
    """
    scale = min(1.0, 2048 / max(width, height))
    scale = min(scale, 768 / min(width, height))
    across, down = (max(1, math.ceil(round(side * scale) / 512)) for side in (width, height))
    return 85 + 170 * across * down


def _patches(width: int, height: int) -> int:
    """Qwen2-VL and Qwen2.5-VL (section 2.1): patches of 14, 2 x 2 of them a token, and two marks."""
    return max(1, round(width / 28)) * max(1, round(height / 28)) + 2


# How providers count the tokens of a picture of width x height pixels.
IMAGE_TOKENS: Final[dict[str, Callable[[int, int], int]]] = {
    "tiles": _tiles,
    "patches": _patches,
}


def text_tokens(text: str) -> int:
    """An estimate: four bytes of UTF-8 a token, and eight for what stands around a message."""
    return math.ceil(len(text.encode("utf-8", "surrogatepass")) / 4) + 8
