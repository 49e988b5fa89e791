"""Crops: of the right size, inside the picture, a function of seed and position."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from oculi.data.crops import Crops


def ramp(width: int = 200, height: int = 100) -> Image.Image:
    """Red grows from left to right, green from top to bottom, by a known amount a pixel."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


def corners(picture: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the part of a ramp that a picture shows."""
    (left, top, _), (right, bottom, _) = picture.getpixel((0, 0)), picture.getpixel((199, 99))
    return left, top, right, bottom


def test_a_crop_keeps_the_size_and_loses_at_most_its_share() -> None:
    crops, lost = Crops(0, 0.2), []
    for position in range(300):
        (picture,) = crops(position, [ramp()])
        left, top, right, bottom = corners(picture)
        assert picture.size == (200, 100)
        assert left <= right and top <= bottom
        lost.append((200 - 1 - (right - left), 100 - 1 - (bottom - top), left, top))
    wide, high, left, top = np.array(lost).T
    assert wide.max() <= 0.2 * 200 + 2 and high.max() <= 0.2 * 100 + 2
    assert wide.max() > 35 and high.max() > 17  # and the share is made use of
    assert 15 < wide.mean() < 25 and left.max() > 25 and top.max() > 12


def test_seed_and_position_decide() -> None:
    shown = [corners(Crops(seed, 0.3)(n, [ramp()])[0]) for seed in (0, 1) for n in range(20)]
    assert shown == [
        corners(Crops(seed, 0.3)(n, [ramp()])[0]) for seed in (0, 1) for n in range(20)
    ]
    assert len(set(shown)) > 36


def test_two_pictures_of_one_sample_are_cut_differently() -> None:
    one, other = Crops(0, 0.3)(5, [ramp(), ramp()])
    assert corners(one) != corners(other)


@pytest.mark.parametrize("position", [0, 2**62])
def test_without_a_share_nothing_is_touched(position: int) -> None:
    picture = ramp()
    assert Crops(0, 0.0)(position, [picture])[0] is picture
    assert Crops(0, 0.5)(position, []) == []


def test_a_picture_of_one_pixel() -> None:
    assert Crops(0, 0.9)(0, [Image.new("RGB", (1, 1), (7, 8, 9))])[0].getpixel((0, 0)) == (7, 8, 9)
