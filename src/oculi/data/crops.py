"""Random crops of training pictures, against learning a small set by heart.

A cropped picture keeps its size, so that it keeps its tokens. Crops move things a little: a large
share is wrong for data that asks where something is, or about what stands at the edge.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oculi.data.order import random_words

_STREAM = 0xC409  # keeps crops independent of all else that the stage's seed decides


class Crops:
    """Cuts up to a share of both sides off, evenly placed, and resizes to the size before.

    Args:
        seed: of the stage.
        share: of width and of height that is cut at most, in [0, 1).
    """

    def __init__(self, seed: int, share: float) -> None:
        self._seed = int(
            np.random.SeedSequence([seed, _STREAM]).generate_state(1, np.uint64)[0] >> 1
        )
        self.share = share

    def __call__(self, position: int, pictures: Sequence[Image.Image]) -> list[Image.Image]:
        """The pictures of the sample at ``position`` of the order, cut; each keeps its size."""
        if not self.share or not pictures:
            return list(pictures)
        words = random_words(self._seed + position, 0, 4 * len(pictures)).reshape(-1, 4)
        chances = words.astype(np.float64) * 2.0**-64
        return [self._cut(p, w) for p, w in zip(pictures, chances, strict=True)]

    def _cut(self, picture: Image.Image, chance: NDArray[np.float64]) -> Image.Image:
        lost = chance[:2] * self.share * picture.size
        corner = chance[2:] * lost
        box = (*corner, *(corner + picture.size - lost))
        return picture.resize(picture.size, Image.Resampling.BICUBIC, box)
