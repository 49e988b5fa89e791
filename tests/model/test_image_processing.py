"""From pictures to patches: sizes within limits, pixels in place."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from transformers import AutoImageProcessor

from oculi.data.images import load_image
from oculi.data.sample import ImageRef
from oculi.model import OculiImageProcessor
from oculi.model.image_processing_oculi import to_rgb

sides = st.one_of(st.integers(1, 64), st.integers(1, 10_000))


def test_a_picture_of_whole_patches_is_only_cut(make_picture: Any) -> None:
    picture = make_picture(12, 8)
    patches, grid = OculiImageProcessor(patch_size=4, min_patches=1).patches(picture)
    assert grid == (2, 3) and patches.shape == (6, 48) and patches.dtype == np.uint8
    pixels = np.asarray(picture)
    # Patch 4 is in row 1, column 1; in a patch channels come first.
    assert np.array_equal(patches[4].reshape(3, 4, 4), pixels[4:8, 4:8].transpose(2, 0, 1))


@settings(max_examples=300, deadline=None)
@given(width=sides, height=sides, low=st.integers(1, 64), more=st.integers(0, 1024))
def test_grid_is_within_the_limits(width: int, height: int, low: int, more: int) -> None:
    processor = OculiImageProcessor(min_patches=low, max_patches=low + more)
    rows, columns = processor.grid(width, height)
    assert rows >= 1 and columns >= 1
    assert rows * columns <= low + more
    if more >= low:  # else no rectangle need have as many patches
        assert rows * columns >= low


@settings(max_examples=200, deadline=None)
@given(width=st.integers(200, 1000), height=st.integers(200, 1000))
def test_native_keeps_the_aspect_ratio(width: int, height: int) -> None:
    """Up to the rounding of the shorter side, here of 7 patches or more."""
    rows, columns = OculiImageProcessor(max_patches=256).grid(width, height)
    assert columns / rows == pytest.approx(width / height, rel=0.2)


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((448, 448), (32, 32)),
        ((4480, 4480), (32, 32)),
        ((100, 50), (4, 7)),
        ((1, 1), (2, 2)),
        ((1, 5000), (357, 1)),
        ((5000, 1), (1, 357)),
        ((1, 50_000), (1024, 1)),
    ],
)
def test_grids_of_known_sizes(size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert OculiImageProcessor().grid(*size) == grid


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 1), (37, 91), (300, 20)])
def test_patches_have_the_grid_that_was_foretold(make_picture: Any, size: tuple[int, int]) -> None:
    processor = OculiImageProcessor(max_patches=64)
    patches, grid = processor.patches(make_picture(*size))
    assert grid == processor.grid(*size) and patches.shape == (grid[0] * grid[1], 588)


def test_native_resizes_the_whole_picture() -> None:
    """Left half red, right half blue, whatever the size: nothing is cropped."""
    picture = Image.new("RGB", (300, 77), "red")
    picture.paste(Image.new("RGB", (150, 77), "blue"), (150, 0))
    patches, (rows, columns) = OculiImageProcessor(max_patches=32).patches(picture)
    assert columns % 2 == 0
    colours = patches.reshape(rows, columns, 3, 196).mean(-1)
    assert (colours[:, 0] - [255, 0, 0]).__abs__().max() < 2
    assert (colours[:, -1] - [0, 0, 255]).__abs__().max() < 2
    left = colours[:, : columns // 2].mean((0, 1))
    assert left[0] > 240 and left[2] < 15


def test_a_smaller_picture_is_an_average() -> None:
    """Not a choice of pixels: black and white squares of a pixel become grey."""
    board = np.indices((64, 64)).sum(0) % 2 * 255
    picture = Image.fromarray(board.astype(np.uint8)).convert("RGB")
    patches, grid = OculiImageProcessor(patch_size=4, max_patches=16).patches(picture)
    assert grid == (4, 4)
    assert patches.min() > 100 and patches.max() < 155


@pytest.mark.parametrize("size", [(40, 10), (10, 40), (32, 8)])
def test_square_pads_with_the_mean_colour(size: tuple[int, int]) -> None:
    mean = (0.5, 0.25, 1.0)
    processor = OculiImageProcessor(patch_size=4, mode="square", size=16, image_mean=mean)
    patches, grid = processor.patches(Image.new("RGB", size, "black"))
    assert grid == processor.grid(*size) == (4, 4)
    colours = patches.reshape(4, 4, 3, 16)
    if size[0] < size[1]:
        colours = colours.transpose(1, 0, 2, 3)
    for row in (0, 3):
        assert (colours[row] == np.array([128, 64, 255])[None, :, None]).all()
    assert colours[1:3].mean() < 100


def test_square_leaves_a_square_unpadded(make_picture: Any) -> None:
    processor = OculiImageProcessor(patch_size=4, mode="square", size=16)
    patches, _ = processor.patches(make_picture(16, 16))
    native = OculiImageProcessor(patch_size=4, min_patches=1).patches(make_picture(16, 16))[0]
    assert np.array_equal(patches, native)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_other_modes_become_rgb(make_picture: Any, mode: str) -> None:
    patches, _ = OculiImageProcessor(patch_size=4).patches(make_picture(16, 16).convert(mode))
    assert patches.shape == (16, 48) and patches.dtype == np.uint8


def ramp() -> Image.Image:
    return Image.fromarray(np.linspace(0, 65535, 35).reshape(5, 7).astype(np.uint16))


def half_clear() -> Image.Image:
    picture = Image.new("RGBA", (7, 5), (0, 0, 0, 0))
    picture.paste((255, 0, 0, 128), (0, 0, 4, 5))
    return picture


def indexed() -> Image.Image:
    picture = Image.new("P", (7, 5), 1)
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.paste(0, (0, 0, 3, 5))
    return picture


# Each with what its file is written with.
ODD: dict[str, tuple[Callable[[], Image.Image], dict[str, Any]]] = {
    "grey of 16 bits": (ramp, {}),
    "grey of 16 bits, one clear": (ramp, {"transparency": 65535}),
    "alpha": (half_clear, {}),
    "grey and alpha": (lambda: Image.new("LA", (7, 5), (0, 0)), {}),
    "a clear colour": (lambda: Image.new("RGB", (7, 5), "red"), {"transparency": (255, 0, 0)}),
    "palette": (indexed, {}),
    "palette, one clear": (indexed, {"transparency": 0}),
    "two values": (lambda: Image.new("1", (7, 5), 1), {}),
    "damaged notes": (lambda: Image.new("RGB", (7, 5), "red"), {"exif": b"Exif\0\0garbage"}),
}
for turn in range(1, 9):
    notes = Image.Exif()
    notes[ExifTags.Base.Orientation] = turn
    ODD[f"turned {turn}"] = (half_clear, {"exif": notes.tobytes()})


@pytest.mark.parametrize("kind", ODD)
def test_a_picture_that_others_opened_has_the_pixels_of_training(kind: str) -> None:
    """An exported model is given pictures as Pillow opens them; training reads files by itself."""
    make, options = ODD[kind]
    file = io.BytesIO()
    make().save(file, "PNG", **options)
    wanted = load_image(ImageRef(data=file.getvalue()))
    found = to_rgb(Image.open(file))
    assert found.mode == "RGB" and np.array_equal(np.asarray(found), np.asarray(wanted))
    assert np.array_equal(np.asarray(to_rgb(found)), np.asarray(wanted))  # nothing is done twice
    processor = OculiImageProcessor(patch_size=4)
    assert np.array_equal(processor.patches(Image.open(file))[0], processor.patches(wanted)[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "crop"}, '"crop" is neither native nor square'),
        ({"mode": "square", "size": 450}, "450 is not a multiple of the patch size 14"),
        ({"min_patches": 0}, "min_patches"),
        ({"min_patches": 9, "max_patches": 8}, r"min_patches \(9\) <= max_patches \(8\)"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OculiImageProcessor(**settings)


def test_several_pictures_are_concatenated(make_picture: Any) -> None:
    processor = OculiImageProcessor(patch_size=4, min_patches=1)
    pictures = [make_picture(8, 8), make_picture(12, 4, seed=1)]
    batch = processor(pictures, return_tensors="pt")
    assert batch["image_grids"].tolist() == [[2, 2], [1, 3]]
    assert batch["pixel_values"].dtype == torch.uint8
    first, second = batch["pixel_values"].split([4, 3])
    assert np.array_equal(first.numpy(), processor.patches(pictures[0])[0])
    assert np.array_equal(second.numpy(), processor.patches(pictures[1])[0])


def test_settings_survive_a_folder(tmp_path: Any) -> None:
    processor = OculiImageProcessor(
        patch_size=8, mode="square", size=64, image_mean=(0.1, 0.2, 0.3)
    )
    processor.save_pretrained(tmp_path)
    for loader in (OculiImageProcessor, AutoImageProcessor):
        again = loader.from_pretrained(tmp_path)
        assert isinstance(again, OculiImageProcessor)
        assert again.patch_size == 8 and again.mode == "square" and again.size == 64
        assert again.image_mean == [0.1, 0.2, 0.3]
