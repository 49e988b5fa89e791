"""The planned sample: its grid, its mask, and how many go through the model at once."""

from typing import Any

import pytest

from helpers import PATCH, Tiny, recipe_data
from oculi.errors import RecipeError
from oculi.plan.sample import (
    attended_pairs,
    picture_grid,
    picture_size,
    sample_batch,
    samples_at_once,
)
from oculi.recipe import ImageSpec, Stage, validate


def grid(picture: tuple[int, int] | None, **images: Any) -> tuple[int, int]:
    return picture_grid(PATCH, ImageSpec(**images), picture)


def test_pictures() -> None:
    assert grid(None, mode="square", size=20) == (5, 5)
    assert grid((640, 480), mode="square", size=20) == (5, 5)
    assert grid(None, max_patches=16) == (4, 4)
    assert grid(None, max_patches=18) == (4, 4)
    assert grid((40, 24), max_patches=1024) == (6, 10)
    assert picture_size("640x480") == (640, 480)
    for wrong in ("640", "x", "0x3", "640 x 480", "-1x2", "axb"):
        with pytest.raises(RecipeError, match="is no size in pixels"):
            picture_size(wrong)


def test_the_text_follows_the_picture_and_is_learnt() -> None:
    batch = sample_batch((2, 3), 4, 5, "cpu")
    assert batch.images_BT.tolist() == [[0] * 6 + [-1] * 4]
    assert batch.label_rows_R.tolist() == [5, 6, 7, 8]
    assert batch.patches_PC.shape == (6, 75) and batch.tokens == 10 and batch.vision_tokens == 6
    meta = sample_batch((2, 3), 4, 5, "meta")
    assert meta.tokens_BT.is_meta and meta.grids_N2.tolist() == [[2, 3]]


@pytest.mark.parametrize("chunk", [3, 1024])
def test_pairs_that_attend(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Image tokens see each other (36), text sees the image (24) and itself causally (10)."""
    monkeypatch.setattr("oculi.plan.sample.CHUNK", chunk)
    batch = sample_batch((2, 3), 4, 5, "cpu")
    assert attended_pairs("bidirectional", batch) == 36 + 24 + 10
    assert attended_pairs("causal", batch) == 10 * 11 // 2
    assert attended_pairs("mutual", batch) == 36 + 24 + 10  # no prompt: all text is learnt
    assert attended_pairs("causal", sample_batch((20, 20), 7, 5, "cpu")) == 407 * 408 // 2


def stage(tiny: Tiny, **changes: object) -> Stage:
    data = recipe_data(tiny, **{f"stages.0.{key}": value for key, value in changes.items()})
    return validate(data, "test").stages[0]


def test_samples_at_once(tiny: Tiny) -> None:
    settings = {"batch": 256, "length": 512, "pack_length": 160, "micro_rows": 4}
    made = stage(tiny, **settings)
    assert samples_at_once(made, 0, 160, 1) == 4
    assert samples_at_once(made, 0, 80, 1) == 8
    assert samples_at_once(made, 0, 81, 1) == 4
    assert samples_at_once(made, 0, 300, 1) == 4  # longer than a pack: a row of its own
    assert samples_at_once(stage(tiny, **{**settings, "pack_length": None}), 0, 160, 1) == 12
    assert samples_at_once(stage(tiny, **{**settings, "batch": 3}), 0, 10, 1) == 3
    assert samples_at_once(made, 0, 10, 100) == 3  # of 256 on 100 GPUs
    with pytest.raises(RecipeError, match=r"513 tokens is longer than stages.0.length, 512"):
        samples_at_once(made, 0, 513, 1)
