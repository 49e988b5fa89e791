"""From a picture to patches, as ``OculiImageProcessor`` cuts them: the same bytes.

That class is transformers'; this file is what it computes, and a test compares the two on many sizes.

Shapes: R rows and Q columns of patches, C = 3 * patch_size**2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oculi.data.images import to_rgb
from oculi.edge.folder import Pictures
from oculi.errors import CheckpointError


class Cutter:
    """Resizes pictures to whole patches and cuts them.

    Args:
        settings: how.

    Raises:
        CheckpointError: a setting is out of range.
    """

    def __init__(self, settings: Pictures) -> None:
        good = (
            settings.patch_size >= 1
            and settings.mode in ("native", "square")
            and 1 <= settings.min_patches <= settings.max_patches
            and (settings.mode == "native" or settings.size >= settings.patch_size)
            and len(settings.image_mean) == 3
        )
        if not good:
            raise CheckpointError(f"edge.json: no pictures can be cut as it says: {settings}")
        self.settings = settings

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of patches for a picture of this size in pixels."""
        s = self.settings
        if s.mode == "square":
            side = s.size // s.patch_size
            return side, side
        rows, columns = height / s.patch_size, width / s.patch_size
        area = rows * columns
        if area > s.max_patches:
            rows, columns = (v * (s.max_patches / area) ** 0.5 for v in (rows, columns))
        elif area < s.min_patches:
            rows, columns = (v * (s.min_patches / area) ** 0.5 for v in (rows, columns))
        rows = min(max(1, round(rows)), s.max_patches)
        columns = min(max(1, round(columns)), s.max_patches)
        while rows * columns < s.min_patches:
            rows, columns = (rows + 1, columns) if rows > columns else (rows, columns + 1)
        while rows * columns > s.max_patches:
            rows, columns = (rows - 1, columns) if rows > columns else (rows, columns - 1)
        return rows, columns

    def patches(self, image: Image.Image) -> NDArray[np.uint8]:
        """One picture to patches [R, Q, C], channels first in a patch."""
        p = self.settings.patch_size
        image = to_rgb(image)
        rows, columns = self.grid(*image.size)
        if self.settings.mode == "square" and image.width != image.height:
            image = self._pad_to_square(image)
        if image.size != (columns * p, rows * p):
            image = image.resize((columns * p, rows * p), Image.Resampling.BICUBIC)
        cut = np.asarray(image).reshape(rows, p, columns, p, 3).transpose(0, 2, 4, 1, 3)
        return np.ascontiguousarray(cut.reshape(rows, columns, -1))

    def _pad_to_square(self, image: Image.Image) -> Image.Image:
        side = max(image.size)
        red, green, blue = (round(255 * mean) for mean in self.settings.image_mean)
        square = Image.new("RGB", (side, side), (red, green, blue))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return square
