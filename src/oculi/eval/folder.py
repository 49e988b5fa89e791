"""A run's folder, of which nothing is trusted: what is read is bounded, and lies within it."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from oculi.data.images import ImageError, image_ref
from oculi.data.images import load_image as load_picture

MAX_PICTURE = 200_000  # bytes in the page
MAX_PICTURE_SIDE = 256  # pixels in the page
MAX_SHEET_SIDE = 1024  # of one with restored pictures
MAX_PICTURE_PIXELS = 4_000_000  # in the file
MAX_PIXELS = 16_000_000  # decoded for one report
_LOSSLESS_SIDE = 128


@dataclass
class RunFolder:
    """A run's folder, with what was noticed while reading it and the pixels that may be decoded."""

    path: Path
    notes: list[str] = field(default_factory=list)
    pixels: int = field(default_factory=lambda: MAX_PIXELS)

    def real(self, name: str) -> Path | None:
        """Where a name leads, links followed; None if that is outside or nowhere."""
        try:
            real = (self.path / name).resolve()
            if not real.is_relative_to(self.path):
                self.notes.append(f"{name} leads out of the run folder and was not read.")
                return None
            return real if real.exists() else None
        except (OSError, ValueError, RuntimeError):  # no permission, a NUL, a loop of links
            self.notes.append(f"{name} cannot be read.")
            return None

    def text(self, name: str, limit: int) -> tuple[str, bool] | None:
        """A file's text, cut after the last line within ``limit`` bytes, and whether it was cut."""
        real = self.real(name)
        if real is None or not real.is_file():  # opening a named pipe would wait for its writer
            return None
        try:
            with real.open("rb") as file:
                data = file.read(limit + 1)
        except OSError:
            self.notes.append(f"{name} cannot be read.")
            return None
        cut = len(data) > limit
        if cut:
            data = data[: data.rfind(b"\n", 0, limit) + 1] or data[:limit]
        return data.decode("utf-8", "replace"), cut

    def picture(
        self, name: str, image: object, side: int = MAX_PICTURE_SIDE
    ) -> tuple[str | None, str]:
        """A small copy as a data URI, or None and why: never the file's own bytes."""
        if not isinstance(image, str) or not image:
            return None, ""
        try:
            ref = image_ref(str(Path(name) / image), self.path)
            width, height = ref.size()
            if width * height > MAX_PICTURE_PIXELS:
                return None, "its picture has too many pixels to be shown here"
            if width * height > self.pixels:
                return None, "its picture is left out: the report has many already"
            self.pixels -= width * height
            picture = load_picture(ref, MAX_PICTURE_PIXELS)
        except ImageError as error:
            return None, str(error)
        picture.thumbnail((side, side), Image.Resampling.BOX)
        small, kind = io.BytesIO(), "png" if max(picture.size) <= _LOSSLESS_SIDE else "jpeg"
        picture.save(small, kind, quality=85)
        if small.tell() > MAX_PICTURE:
            return None, "its picture is too large to be shown here"
        return f"data:image/{kind};base64,{base64.b64encode(small.getvalue()).decode()}", ""
