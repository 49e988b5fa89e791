"""True answers: of the right area, of any picture, of the right codebook."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from oculi.cognition.codebook import Codebook
from oculi.cognition.readers import CodeReader, PixelReader, costliest
from oculi.errors import CheckpointError
from oculi.specs.cognition import CodesSpec, PixelsSpec


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_a_grid_as_fine_as_the_pixels_gives_their_values() -> None:
    picture = noise(8, 12)
    reader = PixelReader(PixelsSpec(grid=(6, 4)))
    for place, box in (((0, 0), (0, 0)), ((50, 50), (6, 4)), ((25, 50), (3, 4))):
        top, left = box
        wanted = np.asarray(picture)[top : top + 6, left : left + 4].reshape(-1, 3)
        assert np.array_equal(reader.values(picture, place), wanted)


def overlap(start: Fraction, end: Fraction, pixel: int) -> Fraction:
    return max(min(end, Fraction(pixel + 1)) - max(start, Fraction(pixel)), Fraction(0))


def mean_colour(
    picture: Image.Image, place: tuple[int, int], grid: tuple[int, int], cell: tuple[int, int]
) -> list[Fraction]:
    """Of a cell of the quarter, pixel by pixel."""
    spans = []
    for side, vertex, cells, number in zip(picture.size[::-1], place, grid, cell, strict=True):
        first, size = Fraction(vertex * side, 100), Fraction(side, 2 * cells)
        start, end = first + number * size, first + (number + 1) * size
        spans.append([overlap(start, end, pixel) / size for pixel in range(side)])
    sums = [Fraction(0)] * 3
    for y, down in enumerate(spans[0]):
        for x, across in enumerate(spans[1]):
            colour = picture.getpixel((x, y))
            sums = [old + down * across * value for old, value in zip(sums, colour, strict=True)]
    return sums


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 5), (12, 9), (40, 3)])
def test_a_cell_is_the_mean_of_its_area(size: tuple[int, int]) -> None:
    """Of pixels at its edge as much counts as lies inside."""
    picture = noise(*size)
    for grid, levels in (((2, 2), 256), ((2, 2), 10), ((1, 3), 256), ((5, 4), 7)):
        reader = PixelReader(PixelsSpec(grid=grid, levels=levels))
        for place in ((0, 0), (50, 50), (17, 33), (50, 1)):
            found = reader.values(picture, place).reshape(*grid, 3)
            for cell in np.ndindex(grid):
                mean = mean_colour(picture, place, grid, cell)
                nearest = [floor(value + Fraction(1, 2)) for value in mean]
                assert found[cell].tolist() == [value * levels // 256 for value in nearest]


def test_levels_divide_the_range_evenly() -> None:
    grey = Image.new("RGB", (4, 4))
    reader = PixelReader(PixelsSpec(grid=(1, 1), levels=4))
    for value, level in ((0, 0), (63, 0), (64, 1), (191, 2), (192, 3), (255, 3)):
        grey.paste((value,) * 3, (0, 0, 4, 4))
        assert reader.values(grey, (10, 10)).tolist() == [[level] * 3]


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (3, 2), (4000, 4000)])
@pytest.mark.parametrize("place", [(0, 0), (50, 50), (17, 33)])
def test_a_picture_of_any_size_has_a_quarter_everywhere(
    size: tuple[int, int], place: tuple[int, int]
) -> None:
    picture = Image.new("RGB", size, (7, 80, 255))
    for grid in ((1, 1), (2, 2), (5, 3)):
        found = PixelReader(PixelsSpec(grid=grid)).values(picture, place)
        assert found.tolist() == [[7, 80, 255]] * (grid[0] * grid[1])


def test_a_window_is_part_of_the_grid(vq_folder: Path) -> None:
    picture = noise(20, 12)
    book = Codebook(str(vq_folder))
    whole = book.indices(picture)
    assert whole.shape == (book.rows, book.columns) == (4, 4) and whole.dtype == np.int64
    assert whole.min() >= 0 and whole.max() < book.entries == 32 and len(np.unique(whole)) > 2
    reader = CodeReader(CodesSpec(vq=str(vq_folder), window=(2, 3)))
    assert reader.places == (3, 2)
    assert reader.values(picture, (2, 1)).ravel().tolist() == whole[2:4, 1:4].ravel().tolist()
    larger = CodeReader(CodesSpec(vq=str(vq_folder), window=(9, 9)))
    assert larger.places == (1, 1)
    assert np.array_equal(larger.values(picture, (0, 0)).reshape(4, 4), whole)


def test_indices_are_the_nearest_codes(vq_folder: Path) -> None:
    """VLSA, equation 5, by hand."""
    from diffusers import VQModel

    picture, book = noise(16, 16), Codebook(str(vq_folder))
    model = VQModel.from_pretrained(vq_folder)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        latents = model.encode(pixels).latents[0].permute(1, 2, 0)
    far = (latents[..., None, :] - model.quantize.embedding.weight).square().sum(-1)
    assert torch.equal(far.argmin(-1), torch.from_numpy(book.indices(picture)))
    other = Codebook(str(vq_folder), signed=False)
    assert not np.array_equal(other.indices(picture), book.indices(picture))


def test_a_size_changes_the_grid(vq_folder: Path) -> None:
    book = Codebook(str(vq_folder), size=32)
    assert book.indices(noise(9, 9)).shape == (8, 8)
    assert book.fingerprint != Codebook(str(vq_folder)).fingerprint
    with pytest.raises(CheckpointError, match="multiple of 4 pixels, not 30"):
        Codebook(str(vq_folder), size=30)


def test_a_codebook_crosses_to_a_worker_without_its_weights(vq_folder: Path) -> None:
    book = Codebook(str(vq_folder))
    book.indices(noise(4, 4))
    assert len(pickle.dumps(book)) < 2000
    again = pickle.loads(pickle.dumps(book))
    assert np.array_equal(again.indices(noise(4, 4)), book.indices(noise(4, 4)))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "cannot be loaded"),
        ("[]", "not a VQModel"),
        ({"_class_name": "AutoencoderKL"}, "is a AutoencoderKL, not a VQModel"),
        ({"_class_name": "VQModel"}, "no size of codebook"),
        ({"_class_name": "VQModel", "num_vq_embeddings": -1, "sample_size": 8,
          "block_out_channels": [8]}, "no size of codebook"),
        ({"_class_name": "VQModel", "num_vq_embeddings": 9, "sample_size": 8,
          "block_out_channels": [8] * 500}, "no size of codebook"),
    ],
)  # fmt: skip
def test_what_is_no_vq_model_is_refused(tmp_path: Path, config: Any, said: str) -> None:
    text = config if isinstance(config, str) else json.dumps(config)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=said):
        Codebook(str(tmp_path))


def test_damaged_weights_are_one_line(vq_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((vq_folder / "config.json").read_text())
    book = Codebook(str(tmp_path))  # planned without weights
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        book.indices(noise(4, 4))
    (weights,) = vq_folder.glob("*.safetensors")
    (tmp_path / weights.name).write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        Codebook(str(tmp_path)).load()


def test_answers_cost_alike_whatever_the_picture_shows(
    vq_folder: Path, make_processor: Callable[..., Any]
) -> None:
    chat = make_processor().chat
    for reader in (
        PixelReader(PixelsSpec()),
        PixelReader(PixelsSpec(grid=(3, 1), levels=10)),
        PixelReader(PixelsSpec(text="joined")),
        CodeReader(CodesSpec(vq=str(vq_folder), window=(2, 2))),
    ):
        most = len(chat.encode_text(costliest(reader, lambda t: len(chat.encode_text(t)))))
        for seed in range(20):
            text = reader.form.write(reader.values(noise(9, 9, seed), (0, 0)))
            assert len(chat.encode_text(text)) == most
    assert "0 to ff" in PixelReader(PixelsSpec(text="hex")).question((0, 0), 0)


def test_without_diffusers_its_extra_is_named(
    vq_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(CheckpointError, match=r"pip install 'oculi\[diffusion\]'"):
        Codebook(str(vq_folder)).load()
