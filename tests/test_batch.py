"""The batch: what its docstring draws is what it holds, and what does not fit is refused."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from oculi.batch import Batch

CHANNELS = 12
SHAPED = (
    "positions_BT", "segments_BT", "images_BT", "prompt_BT", "branches_BT", "modality_BT",
)  # fmt: skip


@pytest.fixture
def batch() -> Batch:
    """The row of the module's docstring: samples A (text, a 2-token image, text) and B (text)."""
    return Batch(
        tokens_BT=torch.tensor([[5, 99, 99, 6, 7, 8, 9, 0]]),
        positions_BT=torch.tensor([[0, 1, 2, 3, 4, 0, 1, 0]]),
        segments_BT=torch.tensor([[0, 0, 0, 0, 0, 1, 1, -1]]),
        images_BT=torch.tensor([[-1, 0, 0, -1, -1, -1, -1, -1]]),
        prompt_BT=torch.tensor([[1, 1, 1, 1, 0, 1, 0, 0]]).bool(),
        label_rows_R=torch.tensor([3, 5]),
        targets_R=torch.tensor([7, 9]),
        patches_PC=torch.zeros(2, CHANNELS, dtype=torch.uint8),
        grids_N2=torch.tensor([[1, 2]]),
        sample_ids=("a", "b"),
        branches_BT=torch.zeros(1, 8, dtype=torch.int64),
        modality_BT=torch.zeros(1, 8, dtype=torch.int64),
    )


def test_counts(batch: Batch) -> None:
    assert (batch.samples, batch.tokens, batch.vision_tokens) == (2, 7, 2)


@pytest.mark.parametrize("name", SHAPED)
def test_every_field_has_the_tokens_shape(batch: Batch, name: str) -> None:
    value = getattr(batch, name)
    with pytest.raises(ValueError, match=name):
        replace(batch, **{name: value[:, :-1]})
    with pytest.raises(ValueError, match=name):
        replace(batch, **{name: value.T})


WRONG = [
    ({"targets_R": torch.tensor([7])}, "label_rows_R and targets_R differ in length"),
    ({"grids_N2": torch.tensor([[1, 2], [1, 1]])}, "1 images in the tokens, 2 grids"),
    ({"grids_N2": torch.tensor([[2, 2]])}, "the grids hold 4 patches, patches_PC 2"),
    ({"patches_PC": torch.zeros(3, CHANNELS)}, "the grids hold 2 patches, patches_PC 3"),
    ({"images_BT": torch.full((1, 8), -1)}, "0 images in the tokens, 1 grids"),
]


@pytest.mark.parametrize(("changes", "said"), WRONG, ids=[said for _, said in WRONG])
def test_images_that_do_not_fit_are_refused(
    batch: Batch, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        replace(batch, **changes)


def test_it_cannot_be_changed(batch: Batch) -> None:
    with pytest.raises(AttributeError):
        batch.tokens_BT = batch.tokens_BT + 1  # type: ignore[misc]


def test_moving_keeps_everything_and_grids_on_the_cpu(batch: Batch) -> None:
    moved = batch.to("meta")
    assert moved.grids_N2.device.type == "cpu" and moved.sample_ids == ("a", "b")
    assert moved.labels_per_row == batch.labels_per_row  # not asked of the device
    others = ("sample_ids", "grids_N2", "labels_per_row")
    tensors = [f.name for f in fields(Batch) if f.name not in others]
    assert {getattr(moved, name).device.type for name in tensors} == {"meta"}
    assert all(getattr(moved, n).dtype == getattr(batch, n).dtype for n in tensors)
    assert replace(batch, branches_BT=None).to("meta").branches_BT is None


def test_label_rows_are_counted_where_the_batch_is_made(batch: Batch) -> None:
    assert batch.labels_per_row == 2
    twice = {
        name: torch.cat([getattr(batch, name)] * 2)
        for name in ("tokens_BT", *SHAPED)
        if name != "images_BT"
    }
    images = torch.cat([batch.images_BT, torch.full((1, 8), -1)])
    rows = torch.tensor([3, 9, 5, 10, 13])
    two = replace(batch, **twice, images_BT=images, label_rows_R=rows, targets_R=rows)
    assert two.labels_per_row == 3
    none = torch.zeros(0, dtype=torch.int64)
    assert replace(batch, label_rows_R=none, targets_R=none).labels_per_row == 0


def test_inputs_are_the_models_keywords(batch: Batch) -> None:
    import inspect

    from oculi.model import OculiForConditionalGeneration

    inputs = batch.model_inputs()
    known = inspect.signature(OculiForConditionalGeneration.forward).parameters
    assert set(inputs) <= set(known)  # a misspelt one would vanish in the LLM's own keywords
    assert inputs["input_ids"] is batch.tokens_BT and inputs["use_cache"] is False
    text = replace(
        batch,
        images_BT=torch.full((1, 8), -1),
        patches_PC=batch.patches_PC[:0],
        grids_N2=batch.grids_N2[:0],
    )
    assert text.model_inputs()["pixel_values"] is None
    assert text.model_inputs()["image_grids"] is None
