"""The sample that a plan is made for: one picture, then text of which every token is learnt."""

from __future__ import annotations

import torch

from oculi.batch import Batch
from oculi.errors import RecipeError, shown
from oculi.model import OculiImageProcessor
from oculi.model.masks_oculi import mask_function
from oculi.recipe import ImageSpec, Stage

CHUNK = 1024  # queries at once, so that counting pairs of a long sample takes little memory


def picture_size(text: str) -> tuple[int, int]:
    """Width and height in pixels from ``640x480``; raises RecipeError where it is none."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise RecipeError(f"--image: {shown(text)} is no size in pixels, as 640x480")
    return int(width), int(height)


def picture_grid(
    patch_size: int, images: ImageSpec, size: tuple[int, int] | None
) -> tuple[int, int]:
    """Rows and columns of patches of a picture.

    Args:
        patch_size: in pixels. images: how pictures are cut.
        size: width and height in pixels; None: the largest square that is let through.
    """
    processor = OculiImageProcessor(patch_size=patch_size, **images.model_dump())
    if size is None:
        side = patch_size * int(images.max_patches**0.5)
        size = (side, side)
    return processor.grid(*size)


def sample_batch(
    grid: tuple[int, int], text: int, patch_size: int, device: str, vision: int | None = None
) -> Batch:
    """A batch of one such sample; its grids stay on the CPU, as in training.

    Args:
        grid: rows and columns of patches. text: tokens after the picture.
        patch_size: in pixels. device: ``meta``, or one that can compute.
        vision: tokens of the picture; None: one a patch.
    """
    patches = grid[0] * grid[1]
    vision = patches if vision is None else vision
    length = vision + text
    with torch.device(device):
        is_vision = torch.arange(length)[None] < vision
        rows = torch.arange(vision - 1, length - 1)  # each predicts the next token
        return Batch(
            tokens_BT=torch.zeros(1, length, dtype=torch.int64),
            positions_BT=torch.arange(length)[None],
            segments_BT=torch.zeros(1, length, dtype=torch.int64),
            images_BT=torch.where(is_vision, 0, -1),
            prompt_BT=is_vision,
            label_rows_R=rows,
            targets_R=torch.zeros_like(rows),
            patches_PC=torch.zeros(patches, 3 * patch_size**2, dtype=torch.uint8),
            grids_N2=torch.tensor([grid], device="cpu"),
            sample_ids=("planned",),
        )


def attended_pairs(policy: str, batch: Batch) -> int:
    """Pairs of query and key that the mask policy lets attend, over the rows of a batch on the CPU."""
    function = mask_function(policy, batch.images_BT, batch.segments_BT, batch.prompt_BT)
    rows, length = batch.tokens_BT.shape
    row, key = torch.arange(rows)[:, None, None], torch.arange(length)[None, None]
    pairs = 0
    for start in range(0, length, CHUNK):
        query = torch.arange(start, min(start + CHUNK, length))[None, :, None]
        pairs += int(function(row, torch.tensor(0), query, key).sum())
    return pairs


def samples_at_once(stage: Stage, number: int, length: int, gpus: int) -> int:
    """Samples of ``length`` tokens that go through the model together on one GPU.

    Args:
        number: of the stage, for the message.

    Raises:
        RecipeError: the stage does not take a sample as long.
    """
    if length > stage.length:
        raise RecipeError(
            f"a sample of {length} tokens is longer than stages.{number}.length, {stage.length}: plan "
            "for fewer --text-tokens or a smaller picture, or raise it"
        )
    in_a_row = max(1, (stage.pack_length or stage.length) // length)
    return min(stage.micro_rows * in_a_row, -(-stage.batch // gpus))
