"""What can be shown of images: scores, and rows of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
GAP = 4  # white pixels behind and below a picture
MOST_PIXELS = 2048  # along the longer side of a sheet


@dataclass(frozen=True)
class Exhibit:
    """What an objective shows of N images.

    Attributes:
        scores: by name, a number for each image, [N].
        rows: by name, a picture for each, [N, H, W, 3]; all of one size, drawn below each other.
    """

    scores: Mapping[str, NDArray[np.float64]]
    rows: Mapping[str, Pixels]

    @classmethod
    def joined(cls, parts: Sequence[Exhibit]) -> Exhibit:
        """Of all images of several ones with the same names."""
        first = parts[0]
        return cls(
            {name: np.concatenate([part.scores[name] for part in parts]) for name in first.scores},
            {name: np.concatenate([part.rows[name] for part in parts]) for name in first.rows},
        )


def sheet(rows: Sequence[Pixels], most: int) -> Image.Image:
    """Rows of pictures [N, H, W, 3], of each the first ``most``, side by side; large ones smaller."""
    shown = [
        np.pad(row[:most], ((0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
        for row in rows
    ]
    whole = Image.fromarray(np.concatenate([np.concatenate(list(row), 1) for row in shown], 0))
    whole.thumbnail((MOST_PIXELS, MOST_PIXELS), Image.Resampling.BOX)
    return whole
