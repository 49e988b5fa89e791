"""What towers compute by themselves, in other code than the package's: for teachers and vision parts."""

from typing import Any

import torch
from torch import Tensor

from helpers import PATCH, Drawn
from oculi.model import OculiImageProcessor
from oculi.model.patch_embed_oculi import unpatchify

TOWERS = ("aimv2", "clip", "siglip2")
HALF = (0.5, 0.5, 0.5)


def cut(*sizes: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Patches and grids of noise pictures of width x height pixels."""
    processor = OculiImageProcessor(patch_size=PATCH, min_patches=1, max_patches=64)
    pictures = [Drawn(*size, seed=i).load() for i, size in enumerate(sizes)]
    batch = processor(pictures, return_tensors="pt")
    return batch["pixel_values"], batch["image_grids"]


def pixels(patches: Tensor, grid: Tensor, mean: Any, std: Any) -> Tensor:
    """Patches of one image to what image processors return: [1, 3, H, W]."""
    image = unpatchify(patches, int(grid[0]), int(grid[1]), PATCH).float() / 255
    return ((image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])[None]


@torch.no_grad()
def own_states(model: Any, image: Tensor) -> list[Tensor]:
    """What the tower computes by itself: its embedding and each block's output, by hooks."""
    found: list[Tensor] = []
    blocks = model.encoder.layers
    handles = [
        blocks[0].register_forward_pre_hook(
            lambda _, args, kwargs: found.append((*args, kwargs.get("hidden_states"))[0]),
            with_kwargs=True,
        ),
        *(b.register_forward_hook(lambda _, args, out: found.append(_first(out))) for b in blocks),
    ]
    if type(model).__name__.startswith("Siglip2"):
        from transformers.models.siglip2.image_processing_pil_siglip2 import (
            convert_image_to_patches,
        )

        flat = torch.from_numpy(convert_image_to_patches(image[0].numpy(), PATCH))[None]
        shapes = torch.tensor([[s // PATCH for s in image.shape[2:]]])
        model(flat, torch.ones(flat.shape[:2], dtype=torch.int64), shapes)
    else:
        model(image)
    for handle in handles:
        handle.remove()
    skip = 1 if type(model).__name__.startswith("CLIP") else 0
    return [state[0, skip:] for state in found]


def _first(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found
